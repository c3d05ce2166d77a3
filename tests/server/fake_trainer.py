"""Speaks like `python -m classifiers`, and does what its parameter `act` says. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ACTS = ["make", "refuse", "crash", "wait", "deaf", "pause", "print", "orphan", "half", "teach"]
PARAMETERS = {
    "act": {"enum": ACTS, "type": "string", "default": "make"},
    "steps": {"type": "integer", "minimum": 1, "default": 1},
    "folder": {"anyOf": [{"type": "string", "format": "path"}, {"type": "null"}]},
}
SESSION = Path("/proc/self/autogroup")  # how Linux weighs this session against others
SCHEMA = {"additionalProperties": False, "type": "object", "properties": PARAMETERS}


def tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def options(words: list[str]) -> tuple[dict[str, str], dict[str, object]]:
    found, params = {}, {}
    while words:
        name = words.pop(0).removeprefix("--")
        if name in ("stdin", "resume"):
            found[name] = "yes"
        elif name == "set":
            key, _, value = words.pop(0).partition("=")
            params[key] = json.loads(value)
        else:
            found[name] = " ".join(filter(None, (found.get(name), words.pop(0))))
    return found, params


def make(kind: str, out: Path, base_model: str, content: bytes, facts: dict[str, object]) -> None:
    """An artifact as `guard.artifacts.write` makes it."""
    out.mkdir(parents=True)
    (out / "data.bin").write_bytes(content)
    manifest = {
        "format": 1, "method": kind, "base_model": base_model, "facts": facts, "measured": {}, "trained": {},
        "files": {"data.bin": hashlib.sha256(content).hexdigest()},
    }  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def main() -> None:
    if sys.argv[1:] == ["--schemas"]:
        tell(tuned=SCHEMA, other=SCHEMA)
        return
    kind, *words = sys.argv[1:]
    found, params = options(words)
    work, act = Path(found["work"]), params.get("act", "make")
    rows = json.loads(sys.stdin.buffer.readline())
    seen = {
        "rows": rows, "nice": os.nice(0), "threads": os.environ["OMP_NUM_THREADS"],
        "waits": os.environ["OMP_WAIT_POLICY"], "pid": os.getpid(),
        "secrets": sorted(name for name in os.environ if name.startswith("LETHE_")),
        "adapters": found.get("adapter", "").split(),
        "resume": "resume" in found, "model": found["model"], "temporary": tempfile.gettempdir(),
        "session": SESSION.read_text().split()[-1] if SESSION.exists() else None,
    }  # fmt: skip
    with (work.parent.parent / "seen.jsonl").open("a") as file:
        file.write(json.dumps(seen) + "\n")
    if not rows["forget"]:
        tell(event="error", message="There are no forget examples; give some.")
        sys.exit(1)
    tell(event="progress", done=0.25, stage="training")
    if act == "refuse":
        tell(event="error", message="The data are bad.")
        sys.exit(1)
    if act == "crash":
        print(f"Traceback\n  secret {rows}\nValueError: {rows}", file=sys.stderr)
        sys.exit(3)
    if act == "print":
        print("not json " + "x" * 200_000)
        print(json.dumps({"event": "progress"}), json.dumps(rows))
        print(json.dumps(rows), file=sys.stderr)
    if act == "pause":
        (work / "checkpoint.pt").write_text("3")
    if act == "half":
        Path(tempfile.mkdtemp(), "rows").write_text(json.dumps(rows))
        Path(found["out"]).mkdir()
        Path(found["out"], "data.bin").write_bytes(b"the first half")
    if act == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if act == "orphan":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (work.parent.parent / "child").write_text(str(child.pid))
        os._exit(4)
    if act in ("wait", "deaf", "half") or (act == "pause" and "resume" not in found):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (work.parent.parent / "child").write_text(str(child.pid))
        sys.stdin.buffer.read()  # until whoever started it is gone
        os.killpg(0, signal.SIGKILL)
    tell(event="progress", done=0.75, stage="measuring")
    facts: dict[str, object] = {"slices": {}} if act == "teach" else {}
    make(kind, Path(found["out"]), found["base-model"], f"{kind} {params.get('steps', 1)}".encode(), facts)
    tell(event="done", artifact="", measured={"loss": 0.5})


if __name__ == "__main__":
    main()
