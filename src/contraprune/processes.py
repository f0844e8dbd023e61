"""How the processes of a data-parallel run share batches, and what each sees of the examples of the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which examples of a batch that all processes share are this one's: ``size`` of them, from ``first`` on."""

    first: int
    size: int
    of: int  # the whole batch

    @property
    def share(self) -> float:
        return self.size / self.of


def cut(examples: int, batch_size: int) -> list[range]:
    """The indices of every batch of a data set in its order; the last may be smaller."""
    return [range(start, min(start + batch_size, examples)) for start in range(0, examples, batch_size)]


def part_of(batch: range, accelerator: Accelerator) -> Part:
    """This process's part of a batch, of which all have the same number of examples, or one more; or none."""
    each, more = divmod(len(batch), accelerator.num_processes)
    rank = accelerator.process_index
    return Part(first=rank * each + min(rank, more), size=each + (rank < more), of=len(batch))


class Batches:
    """Batches of given examples on the device of this process; None for one without examples.

    Draws nothing from the global stream of random numbers.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        indices: Sequence[range],
        *,
        collator: Callable[[list[dict[str, Any]]], Any],
        accelerator: Accelerator,
    ) -> None:
        self.indices = indices
        self.device = accelerator.device
        chosen = [list(batch) for batch in indices if batch]
        self.loader = DataLoader(dataset, batch_sampler=chosen, collate_fn=collator, generator=torch.Generator())

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        loaded = iter(self.loader)
        for batch in self.indices:
            yield send_to_device(next(loaded), self.device) if batch else None


class Gathered(NamedTuple):
    """The examples of all processes, in the order of the processes."""

    rows: Float[Tensor, "all dim"]
    ids: Int[Tensor, " all"]
    elsewhere: Bool[Tensor, " all"]  # not on this process


def gather_examples(
    rows: Float[Tensor, "batch dim"], ids: Int[Tensor, " batch"], *, most: int, accelerator: Accelerator
) -> Gathered:
    """What every process has of a batch, which may be different numbers of examples.

    All processes have to call it; that needs one exchange, since what is sent is filled up to one size.

    Args:
        ids: zero or more.
        most: examples that a process can have.
    """
    missing = most - len(ids)
    filled = F.pad(rows, (0, 0, 0, missing)), F.pad(ids, (0, missing), value=-1)
    all_rows, all_ids = accelerator.gather(filled)
    there = all_ids >= 0
    elsewhere = torch.arange(len(all_ids), device=all_ids.device) // most != accelerator.process_index
    return Gathered(all_rows[there], all_ids[there], elsewhere[there])
