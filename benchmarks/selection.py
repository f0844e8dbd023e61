"""What a mask of the top scores costs: contraprune.keep_top against torch's sort, topk and kthvalue.

    python benchmarks/selection.py [--output FILE.json] [--threads 1] [--repeats 15]

Every way builds the whole mask. Sort, topk and kthvalue build it from their threshold (and may keep too many
where scores are tied, which keep_top does not). ``again`` is keep_top with the memory of its last time, as in every
step of a run but the first; scores without ties move to and fro by a thousandth meanwhile. Repeats of all ways are
interleaved, in one process.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from contraprune.machine import describe
from contraprune.selection import Threshold, keep_top, keep_top_together

SIZES = {"147k": (384, 384), "590k": (384, 1536), "2.36M": (768, 3072)}
DENSITIES = (0.5, 0.1, 0.03)


def distributions(shape: tuple[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal, other = (torch.randn(shape, generator=generator) for _ in range(2))
    return {
        "normal": normal,
        "ties": (3 * normal).round(),
        "heavy-tailed": normal / other.abs().clamp_min(1e-6),
        "all equal": torch.zeros(shape),
    }


def by_sort(scores: Tensor, density: float) -> Tensor:
    flat = scores.flatten()
    return scores >= flat.sort(descending=True).values[int(density * len(flat)) - 1]


def by_topk(scores: Tensor, density: float) -> Tensor:
    flat = scores.flatten()
    return scores >= flat.topk(int(density * len(flat)), sorted=False).values.amin()


def by_kthvalue(scores: Tensor, density: float) -> Tensor:
    flat = scores.flatten()
    return scores >= flat.kthvalue(len(flat) - int(density * len(flat)) + 1).values


def again(last: Threshold) -> Callable[[Tensor, float], Tensor]:
    return lambda scores, density: keep_top_together([scores], density, last=last)[0]


WAYS = ("keep_top", "again", "sort", "topk", "kthvalue")


def measure(scores: Tensor, moved: Tensor, density: float, repeats: int) -> dict[str, float]:
    """Median milliseconds of each way; every other repeat sees the moved scores."""
    ways = dict(zip(WAYS, (keep_top, again(Threshold()), by_sort, by_topk, by_kthvalue), strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(repeats):
        for name, way in ways.items():
            start = perf_counter()
            way(moved if number % 2 else scores, density)
            seconds[name].append(perf_counter() - start)
    return {name: round(1000 * median(values), 3) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{'scores':>7} {'distribution':>13} {'density':>8}", *(f"{name:>10}" for name in WAYS), "keep_top/sort")
    for size, shape in SIZES.items():
        noise = 1 + 1e-3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for distribution, scores in distributions(shape).items():
            moved = scores if distribution in ("ties", "all equal") else scores * noise
            for density in DENSITIES:
                times = measure(scores, moved, density, options.repeats)
                ratios = {name: round(times["keep_top"] / times[name], 4) for name in WAYS[2:]}
                rows.append(
                    {
                        "scores": scores.numel(),
                        "distribution": distribution,
                        "density": density,
                        "milliseconds": times,
                        "keep_top_over": ratios,
                    }
                )
                shown = (f"{value:7.2f} ms" for value in times.values())
                print(f"{size:>7} {distribution:>13} {density:>8}", *shown, f"{ratios['sort']:.3f}", flush=True)
    if options.output:
        results = {"machine": describe(), "repeats": options.repeats, "results": rows}
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
