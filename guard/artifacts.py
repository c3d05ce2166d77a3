"""Artifacts: what trainers make and the guard uses, a folder with a manifest and safetensors files.

The manifest names every other file with its SHA-256, and the SHA-256 of the manifest names the artifact. So a
name vouches for every byte, and a target that names an artifact can never get another one. An artifact is made
for one model, which is known by the digest of its weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guard.errors import ArtifactError

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"


class Manifest(BaseModel):
    """What an artifact says of itself.

    method: the intervention or detector that it belongs to; base_model: digest of the weights it was trained
    for; facts: what the method must know (layer, scale, rank), and where they are needed to see it act, `params`
    of the method and the token ids of a prompt, `canary`; measured: figures of its training, with n; trained: how
    it was made (trainer, parameters, seed, hash of its data).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    method: str
    base_model: Digest
    files: dict[Annotated[str, Field(pattern=_NAME)], Digest]
    facts: dict[str, Any] = Field(default_factory=dict)
    measured: dict[str, Any] = Field(default_factory=dict)
    trained: dict[str, Any] = Field(default_factory=dict)


class Artifact:
    """One artifact on disk, verified when it was opened."""

    def __init__(self, digest: str, manifest: Manifest, folder: Path) -> None:
        self.digest = digest
        self.manifest = manifest
        self.folder = folder

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of its safetensors files, on the CPU."""
        from safetensors.torch import load_file

        found: dict[str, torch.Tensor] = {}
        for name in sorted(self.manifest.files):
            if name.endswith(".safetensors"):
                found |= load_file(self.folder / name)
        return found


def write(
    folder: Path,
    method: str,
    base_model: str,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    trained: Mapping[str, Any] | None = None,
) -> Artifact:
    """Make `folder` an artifact: what it already holds, and `tensors` in a file of their own."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    if tensors is not None:
        save_file(
            {k: v.detach().contiguous().cpu() for k, v in tensors.items()}, folder / "tensors.safetensors"
        )
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    manifest = Manifest(
        method=method,
        base_model=base_model,
        files=files,
        facts=dict(facts or {}),
        measured=dict(measured or {}),
        trained=dict(trained or {}),
    )
    text = json.dumps(manifest.model_dump(), indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return read(folder)


def read(folder: Path) -> Artifact:
    """The artifact in `folder`, every byte checked.

    Raises:
        ArtifactError: there is none, or a file is missing, added or changed.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(raw)
    except OSError:
        raise ArtifactError(f"There is no artifact in {folder.name}: it has no {MANIFEST}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"The manifest is not valid: {where}: {first['msg']}.") from None
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    if present != set(manifest.files):
        odd = sorted(present ^ set(manifest.files))[0]
        raise ArtifactError(f"The artifact's files are not those of its manifest: {odd}.")
    for name, digest in manifest.files.items():
        if _sha256(folder / name) != digest:
            raise ArtifactError(f"The artifact's file {name} is not the one that its manifest names.")
    return Artifact(hashlib.sha256(raw).hexdigest(), manifest, folder)


class ArtifactStore:
    """Artifacts by digest in one folder of the installation. Nothing else is ever loaded by a request."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, folder: Path) -> Artifact:
        """Take a copy of the artifact in `folder`.

        Raises:
            ArtifactError: it is not a whole artifact.
        """
        artifact = read(folder)
        place = self.root / artifact.digest
        if not place.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            part = self.root / f".{artifact.digest}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for name in (*artifact.manifest.files, MANIFEST):
                shutil.copyfile(folder / name, part / name)
            part.rename(place)
        return read(place)

    def get(self, digest: str) -> Artifact:
        """The artifact of that digest.

        Raises:
            ArtifactError: it is not here, or no longer whole.
        """
        place = self.root / digest
        if len(digest) != 64 or not place.is_dir():
            raise ArtifactError(f"There is no artifact {digest[:16]} here.")
        artifact = read(place)
        if artifact.digest != digest:
            raise ArtifactError(f"The artifact {digest[:16]} has another content than its name says.")
        return artifact

    def remove(self, digest: str) -> bool:
        """Erase it; whether it was here."""
        place = self.root / digest
        if len(digest) != 64 or not place.is_dir():
            return False
        shutil.rmtree(place)
        return True

    def digests(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and len(p.name) == 64)


def weights_folder(model: str) -> Path:
    """Where the weights of a model lie: itself where it is a folder, else its place in the Hugging Face cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError):
        return Path(model)


def weights_digest(model_folder: Path) -> str:
    """64 hex digits that tell models apart: names, types, shapes and first bytes of all stored tensors.

    Raises:
        ArtifactError: the folder holds no safetensors weights.
    """
    files = sorted(model_folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"The model folder {model_folder.name} holds no safetensors weights.")
    found = sorted(entry for path in files for entry in _entries(path))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _entries(path: Path) -> Iterator[tuple[str, str, list[int], str]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, about in header.items():
            if name != "__metadata__":
                start, end = about["data_offsets"]
                file.seek(8 + length + start)
                head = file.read(min(end - start, 256)).hex()
                yield name, about["dtype"], about["shape"], head


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
