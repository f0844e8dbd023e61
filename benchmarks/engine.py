"""The sparse engine against dense inference: torch, OpenVINO (fp32 and int8) and ONNX Runtime.

    pip install ".[bench]"
    python benchmarks/engine.py [--output FILE.json] [--model minilm|bert-base] [--batch_size N] [--threads 1] \
        [--seconds 6]

Random weights of the shapes of MiniLM-L6 and BERT-base, masks by magnitude, 128 tokens. All of one batch size run in
turn in one process, over and over; ratios are taken within a turn, and their median is reported. With one thread the
clock is the processor time of the process, which other work on the machine disturbs least; with more it is wall time.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nncf
import numpy as np
import onnxruntime
import openvino as ov
import torch
from transformers import BertConfig, BertModel

from contraprune.engine import accelerate
from contraprune.machine import describe
from contraprune.runtime_options import onnx_options, openvino_options
from contraprune.structure import find_layers

SHAPES: dict[str, dict[str, int]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
}
LENGTH = 128
CASES = {  # name: density, rows of a block, instruction set
    "20%": (0.2, 1, None),
    "10%": (0.1, 1, None),
    "3%": (0.03, 1, None),
    "10% in 4x1 blocks": (0.1, 4, None),
    "10%, AVX2": (0.1, 1, "avx2"),
    "3%, AVX2": (0.03, 1, "avx2"),
    "10%, portable": (0.1, 1, "portable"),
}
Run = Callable[[], Any]


class Last(torch.nn.Module):
    """The last hidden states only, of a fixed length: what the other engines are given."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def pruned(model: BertModel, density: float, block: int) -> BertModel:
    model = copy.deepcopy(model)
    for layer in find_layers(model):
        for linear in layer.linears.values():
            weight: Any = linear.weight
            scores = weight.data.abs().view(-1, block, weight.shape[1]).mean(1)
            threshold = scores.flatten().kthvalue(int((1 - density) * scores.numel())).values
            weight.data *= (scores > threshold).repeat_interleave(block, 0)
    return model


def openvino_models(model: BertModel, batch: int, threads: int) -> dict[str, Run]:
    inputs = batch_of(batch)
    converted = ov.convert_model(Last(model).eval(), example_input=inputs)
    converted.reshape({port: [batch, LENGTH] for port in converted.inputs})
    rng = np.random.default_rng(0)
    samples = [
        {"input_ids": rng.integers(1000, 20000, (batch, LENGTH)), "attention_mask": np.ones((batch, LENGTH), np.int64)}
        for _ in range(8)
    ]
    int8 = nncf.quantize(
        converted, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
    )
    core = ov.Core()
    options = openvino_options(threads)
    feed = {name: value.numpy() for name, value in inputs.items()}
    runs: dict[str, Run] = {}
    for name, graph in (("OpenVINO fp32", converted), ("OpenVINO int8", int8)):
        request = core.compile_model(graph, "CPU", options).create_infer_request()
        runs[name] = lambda request=request: request.infer(feed)  # type: ignore[misc]
    return runs


def onnx_model(model: BertModel, batch: int, threads: int) -> dict[str, Run]:
    inputs = batch_of(batch)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(Last(model).eval(), (inputs["input_ids"], inputs["attention_mask"]), path, dynamo=True)
        session = onnxruntime.InferenceSession(path, onnx_options(threads), providers=["CPUExecutionProvider"])
    feed = {port.name: inputs[name].numpy() for port, name in zip(session.get_inputs(), inputs, strict=True)}
    return {"ONNX Runtime fp32": lambda: session.run(None, feed)}


def batch_of(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (batch, LENGTH), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def measure(model: BertModel, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of each way, and of each case the ratios to the dense ones."""
    inputs = batch_of(batch)
    dense: dict[str, Run] = {"torch": lambda: model(**inputs)}
    dense |= openvino_models(model, batch, threads) | onnx_model(model, batch, threads)
    sparse: dict[str, Run] = {}
    errors = {}
    for name, (density, block, isa) in CASES.items():
        sparse_model = pruned(model, density, block)
        fast = accelerate(sparse_model, threads=threads, isa=isa)
        expected = sparse_model(**inputs).last_hidden_state
        error = (fast(**inputs).last_hidden_state - expected).abs().max() / expected.abs().max()
        errors[name] = float(f"{error:.1e}")
        sparse[name] = lambda fast=fast: fast(**inputs)  # type: ignore[misc]
    clock = time.process_time if threads == 1 else time.perf_counter
    turns: list[dict[str, float]] = []
    started = time.perf_counter()
    while len(turns) < 5 or time.perf_counter() - started < seconds:
        turn = {}
        for name, run in (dense | sparse).items():
            run()  # warm caches for itself, as in steady use
            start = clock()
            run()
            turn[name] = 1000 * (clock() - start)
        turns.append(turn)
    middle = {name: round(median(turn[name] for turn in turns), 3) for name in turns[0]}
    ratios = {
        case: {name: round(median(turn[name] / turn[case] for turn in turns), 2) for name in dense} for case in sparse
    }
    return {"turns": len(turns), "milliseconds": middle, "speedup_over": ratios, "relative_error": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results to this JSON file, beside those it has")
    parser.add_argument("--model", choices=sorted(SHAPES), action="append")
    parser.add_argument("--batch_size", type=int, action="append", help="default: 1 and 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6, help="measuring time of each batch size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for name in options.model or sorted(SHAPES):
        model = BertModel(BertConfig(**SHAPES[name]), add_pooling_layer=False).eval()  # type: ignore[arg-type]
        for batch in options.batch_size or (1, 8):
            result = measure(model, batch, options.threads, options.seconds)
            rows.append({"model": name, "batch": batch, "length": LENGTH, "threads": options.threads, **result})
            print(f"{name}, {batch}x{LENGTH}, {options.threads} thread(s), {result['turns']} turns")
            print("  dense:", {key: value for key, value in result["milliseconds"].items() if key not in CASES})
            for case, ratios in result["speedup_over"].items():
                print(f"  {case:18} {result['milliseconds'][case]:8.2f} ms", ratios, flush=True)
    if options.output:
        earlier = json.loads(options.output.read_text())["results"] if options.output.exists() else []
        fresh = {(row["model"], row["batch"], row["threads"]) for row in rows}
        kept = [row for row in earlier if (row["model"], row["batch"], row["threads"]) not in fresh]
        versions = {package.__name__: package.__version__ for package in (ov, nncf, onnxruntime)}
        results = {"machine": describe() | versions, "results": kept + rows}
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
