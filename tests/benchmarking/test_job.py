"""``contraprune bench``: what runs is what it says, and the numbers follow from the times."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import contraprune
from contraprune.benchmarking import alone, job
from contraprune.benchmarking.runtimes import RUNTIMES, Runtime, open_model
from contraprune.cli import main


def candidate(runtime: str, *, dense: bool) -> job.Candidate:
    return job.Candidate(
        model="m", runtime=runtime, directory=Path(), inputs=("input_ids",), vocabulary=50, dense=dense
    )


def test_the_command(as_onnx: Path, as_openvino: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exported models run in their own runtime, in this process and in one of their own."""
    output, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    flags = ["--batch_sizes", "1,2", "--lengths", "8", "--rounds", "3"]
    files = ["--output", str(output), "--picture", str(picture)]
    assert main(["bench", str(as_openvino), "--against", str(as_onnx), *flags, *files]) == 0
    shown = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["shapes"] == ["1x8", "2x8"]
    dense, other = report["models"]
    assert [(row["runtime"], row["dense"]) for row in (dense, other)] == [("onnx", True), ("openvino", False)]
    for row, directory, names in (
        (dense, as_onnx, ("model.onnx", "model.onnx.data")),
        (other, as_openvino, ("openvino_model.xml", "openvino_model.bin")),
    ):
        assert row["bytes"] == sum((directory / name).stat().st_size for name in names)
        assert 1e7 < row["peak_bytes"] < 1e9
        assert row["load_seconds"] > 0
        for shape, latency in row["latency"].items():
            assert 0 < latency["p50_ms"] <= latency["p95_ms"]
            assert f"{latency['p50_ms']:.2f}" in shown
            batch = int(shape[0])
            assert latency["texts_per_second"] == pytest.approx(1000 * batch / latency["p50_ms"], rel=0.01)
    assert dense["latency"]["1x8"]["speedup_over_dense"] == {"float32": 1.0, "any": 1.0}
    assert report["strongest_dense"]["1x8"] == {"float32": "onnx", "any": "onnx"}
    assert report["machine"]["threads"] == 1
    assert report["machine"]["onnxruntime"] in shown
    assert picture.read_text().startswith("<?xml")


def test_without_a_dense_model_there_is_no_speedup(
    as_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bench.json"
    flags = ["--batch_sizes", "1", "--lengths", "8", "--rounds", "1", "--output", str(output)]
    assert main(["bench", str(as_onnx), *flags]) == 0
    shown = capsys.readouterr().out
    assert "no dense baseline, so no speed-up: name the dense model with --against" in shown
    assert "faster" not in shown
    assert "(dense)" not in shown
    report = json.loads(output.read_text())
    assert report["strongest_dense"] == {"1x8": {}}
    (row,) = report["models"]
    assert not row["dense"]
    assert row["latency"]["1x8"]["speedup_over_dense"] == {}


def test_runtimes_restricts_all_but_the_dense_model(tiny: Path, shrunk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense model is exported for and measured in every installed runtime, so the strongest one is among them."""
    exported: list[tuple[str, str]] = []

    def directory(model: Any, inputs: Any, runtime: str, source: Path, scratch: Path) -> Path:
        exported.append((str(source), runtime))
        return source

    monkeypatch.setattr(job, "_exported", directory)
    monkeypatch.setattr(job, "measure", lambda candidates, config: {"measured": candidates})
    monkeypatch.setitem(RUNTIMES, "onnx-int8", Runtime(format="onnx", packages=("no_such_package",), exact=False))
    dense, pruned = str(tiny / "teacher"), str(shrunk)
    report = job.run_bench([pruned], job.BenchConfig(against=dense, runtimes="sparse"))
    found = [(one.model, one.runtime, one.dense) for one in report["measured"]]
    others = [name for name in RUNTIMES if name not in ("sparse", "onnx-int8")]
    assert found == [*((dense, name, True) for name in others), (pruned, "sparse", False)]
    assert exported == [(model, runtime) for model, runtime, _ in found]
    assert report["skipped"] == [f"{dense} in sparse: a dense model"]


def test_torch_and_the_sparse_engine(shrunk: Path, tmp_path: Path) -> None:
    """A dense directory is exported for every runtime; the outputs are those of its model."""
    skipped: list[str] = []
    names = ["torch", "torch-bf16", "sparse"]
    found = list(job.candidates_of(str(shrunk), names, tmp_path / "a", skipped, dense=False))
    assert [one.runtime for one in found] == names
    assert (found[2].directory / "model.sparse.safetensors").is_file()
    inputs = job._inputs(found[0], (2, 7))
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert {array.shape for array in inputs.values()} == {(2, 7)}
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        expected = contraprune.load(shrunk)(**tensors).logits.numpy()
    outputs = [open_model(one.runtime, one.directory, 1)(inputs) for one in found]
    np.testing.assert_allclose(outputs[0], expected, atol=1e-6)
    np.testing.assert_allclose(outputs[2], expected, atol=1e-5)
    assert 1e-4 < np.abs(outputs[1] - expected).max() < 0.1 * np.abs(expected).max(), "it does compute in bf16"
    dense = list(job.candidates_of(str(shrunk), names, tmp_path / "b", skipped, dense=True))
    assert [one.runtime for one in dense] == names[:2]
    assert skipped == [f"{shrunk} in sparse: a dense model"]


def test_runtimes_agree_or_are_refused() -> None:
    candidates = [candidate(name, dense=False) for name in ("torch", "onnx-int8", "openvino")]
    feeds: Any = [{}] * 3

    def noted(second: float, third: float) -> list[float]:
        outputs = [np.array([4.0, 1.0]), np.array([4.0, 1.0 + second]), np.array([4.0 - third, 1.0])]
        rows: Any = [{"difference": None} for _ in outputs]
        job._compare(candidates, [lambda _, output=output: output for output in outputs], feeds, rows)
        return [row["difference"] for row in rows]

    assert noted(0.4, 1e-4) == pytest.approx([0.0, 0.1, 2.5e-5])
    with pytest.raises(contraprune.UserError, match="m in openvino: its outputs differ from PyTorch's by"):
        noted(0.0, 0.4)


def test_the_strongest_dense_baseline_and_the_speedup_over_it() -> None:
    names = [("torch", True), ("openvino", True), ("openvino-int8", True), ("sparse", False)]
    candidates = [candidate(name, dense=dense) for name, dense in names]
    times = [[9.0, 9.0, 9.0], [4.0, 5.0, 9.0], [3.0, 3.0, 3.0], [1.0, 1.0, 3.0]]
    strongest = job._strongest(candidates, times)
    assert strongest == {"float32": "openvino", "any": "openvino-int8"}
    latency = job._latency(times[3], 8, times, candidates, strongest)
    assert latency["speedup_over_dense"] == {"float32": 4.0, "any": 3.0}  # medians of 4, 5, 3 and of 3, 3, 1
    assert latency["p50_ms"] == 1000
    assert latency["p95_ms"] == pytest.approx(2800)
    assert latency["texts_per_second"] == 8


def test_every_run_is_timed_in_every_round() -> None:
    calls: list[int] = []
    runs: Any = [lambda _, number=number: calls.append(number) for number in range(2)]
    times = job._rounds(runs, [{}, {}], 3, lambda: float(len(calls)))  # one call later, one second later
    assert times == [[1.0] * 3, [1.0] * 3]
    assert calls == [0, 0, 1, 1] * (3 + job._WARM_UP)


def test_memory_is_that_of_the_process_alone() -> None:
    """Not of the one that started it, which is larger; and given back memory still counts."""
    code = "import numpy as np; from contraprune.benchmarking.alone import peak_bytes; print(peak_bytes());"
    code += "np.ones(10_000_000); print(peak_bytes())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, shown.split())
    assert before < alone.peak_bytes() / 2
    assert 75_000_000 < after - before < 90_000_000


def refuse(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "somewhere", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_refused(
    tiny: Path, shrunk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    against = ["--against", str(tiny / "teacher")]
    refuse([*against, "--runtimes", "torch,tflite"], "--runtimes: expected some of torch,", capsys)
    refuse([*against, "--lengths", "8,x"], "--lengths: expected positive numbers joined by commas, found 8,x", capsys)
    refuse([*against, "--batch_sizes", "0"], "--batch_sizes: expected positive numbers", capsys)
    refuse([*against, "--runtimes", "torch"], "somewhere: expected a model directory", capsys)
    monkeypatch.setattr(job, "why_not", lambda _: "a family it does not run")
    message = f"--runtimes sparse: expected one that runs a model, found {shrunk} in sparse: a family it does not run"
    assert main(["bench", str(shrunk), "--runtimes", "sparse"]) == 2
    assert message in capsys.readouterr().err
    monkeypatch.setitem(RUNTIMES, "onnx", Runtime(format="onnx", packages=("no_such_package",)))
    refuse([*against, "--runtimes", "onnx"], "needs no_such_package; pip install 'contraprune[onnx]'", capsys)
    assert "onnx" not in job.BenchConfig(against="x").chosen()
    assert "torch" in job.BenchConfig(against="x").chosen()
