"""Who has which examples of a batch, and what a process sees of the others': ranks played one after the other."""

import datasets
import pytest
import torch
from accelerate import Accelerator

from contraprune.processes import Batches, cut, gather_examples, part_of


@pytest.fixture
def ranks(monkeypatch):
    """The accelerators of so many processes, each as long as it is the one that was asked for last."""

    def play(processes):
        monkeypatch.setattr(Accelerator, "num_processes", processes)
        for rank in range(processes):
            monkeypatch.setattr(Accelerator, "process_index", rank)
            yield Accelerator(cpu=True)

    return play


@pytest.mark.parametrize(("examples", "processes"), [(8, 1), (8, 2), (7, 2), (7, 3), (2, 4)])
def test_every_example_of_a_batch_is_in_one_part(ranks, examples, processes):
    parts = [part_of(range(examples), accelerator) for accelerator in ranks(processes)]
    assert [number for part in parts for number in range(part.first, part.first + part.size)] == [*range(examples)]
    assert max(part.size for part in parts) - min(part.size for part in parts) <= 1
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_batches_are_those_asked_for_in_order():
    assert cut(5, 2) == [range(2), range(2, 4), range(4, 5)]
    assert cut(4, 2) == [range(2), range(2, 4)]
    dataset = datasets.Dataset.from_dict({"idx": list(range(9))})
    state = torch.get_rng_state()
    batches = Batches(
        dataset,
        [range(6, 8), range(0), range(3)],
        collator=lambda rows: torch.tensor([row["idx"] for row in rows]),
        accelerator=Accelerator(cpu=True),
    )
    assert len(batches) == 3
    assert [None if batch is None else batch.tolist() for batch in batches] == [[6, 7], None, [0, 1, 2]]
    assert torch.equal(torch.get_rng_state(), state)


def test_examples_of_all_processes_are_gathered_whatever_each_has(ranks, monkeypatch):
    own = [(torch.rand(2, 5), torch.tensor([7, 0])), (torch.rand(0, 5), torch.tensor([], dtype=torch.long))]
    own.append((torch.rand(3, 5), torch.tensor([4, 4, 9])))
    sent = []
    monkeypatch.setattr(Accelerator, "gather", lambda self, tensors: sent.append(tensors) or tensors)
    for (rows, ids), accelerator in zip(own, ranks(3), strict=True):
        gather_examples(rows, ids, most=3, accelerator=accelerator)
    assert [(len(rows), len(ids)) for rows, ids in sent] == [(3, 3)] * 3  # what torch.distributed demands
    together = [torch.cat(tensors) for tensors in zip(*sent, strict=True)]
    monkeypatch.setattr(Accelerator, "gather", lambda self, tensors: together)
    for rank, accelerator in enumerate(ranks(3)):
        found = gather_examples(*own[rank], most=3, accelerator=accelerator)
        assert found.ids.tolist() == [7, 0, 4, 4, 9]
        assert torch.equal(found.rows, torch.cat([rows for rows, _ in own]))
        assert torch.equal(found.ids[~found.elsewhere], own[rank][1])
