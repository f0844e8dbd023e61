"""What building and reading a representation bank costs, per row, as the number of training examples grows.

    python benchmarks/banks.py [--output FILE.json] [--rows 8000 64000 512000] [--width 384]

Writes random unit rows in batches of 64 in shuffled order, seals the bank (flush, checksum), opens it again and
draws the candidates of training batches. Linear means: the same microseconds per row at every size.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from contraprune.bank import Bank, RowFile, RowSpec
from contraprune.machine import describe


def measure(rows: int, width: int, *, in_memory: bool) -> dict[str, float]:
    values = torch.nn.functional.normalize(torch.randn(64, width), dim=-1)
    order = torch.randperm(rows)
    with tempfile.TemporaryDirectory() as folder:
        spec = RowSpec(rows=rows, width=width)
        start = perf_counter()
        file = RowFile.create(Path(folder) / "bank", spec, in_memory=in_memory)
        for ids in order.split(64):
            file.write(ids, values[: len(ids)])
        written = perf_counter()
        file.seal({})
        sealed = perf_counter()
        opened = RowFile.open(Path(folder) / "bank", spec, in_memory=in_memory, provenance={})
        assert opened is not None
        ready = perf_counter()
        bank = Bank(None, [opened])
        draws = []
        for step in range(50):
            begin = perf_counter()
            bank.candidates(order[:32], extra_examples=4096, rng=np.random.default_rng(step))
            draws.append(perf_counter() - begin)
    return {
        "write_us_per_row": 1e6 * (written - start) / rows,
        "seal_us_per_row": 1e6 * (sealed - written) / rows,
        "open_us_per_row": 1e6 * (ready - sealed) / rows,
        "candidates_ms": 1e3 * median(draws),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[8_000, 64_000, 512_000])
    parser.add_argument("--width", type=int, default=384)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [
        {"rows": rows, "in_memory": in_memory, **measure(rows, arguments.width, in_memory=in_memory)}
        for in_memory in (True, False)
        for rows in arguments.rows
    ]
    for result in results:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()})
    if arguments.output:
        content = {"machine": describe(), "width": arguments.width, "results": results}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
