"""Representation banks: what is written is what is read, and damage is noticed."""

import json

import numpy as np
import pytest
import torch

from contraprune.bank import Bank, RowFile, RowSpec
from contraprune.errors import UserError

PROVENANCE = {"model": "m"}


def unit_rows(rows, width, seed=0):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def build(path, values, *, dtype="float16", in_memory=True, batch=7):
    spec = RowSpec(rows=values.shape[0], width=values.shape[1], dtype=dtype)
    file = RowFile.create(path, spec, in_memory=in_memory)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(5))
    for ids in order.split(batch):
        file.write(ids, values[ids])
    file.seal(PROVENANCE)
    return file, spec


def reopen(path, spec, *, in_memory=True, provenance=PROVENANCE):
    return RowFile.open(path, spec, in_memory=in_memory, provenance=provenance)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-4), ("float32", 0.0)])
def test_rows_written_in_any_order_are_read_back(tmp_path, in_memory, dtype, tolerance):
    values = unit_rows(100, 8)
    file, spec = build(tmp_path / "bank", values, dtype=dtype, in_memory=in_memory)
    for found in (file, reopen(tmp_path / "bank", spec, in_memory=not in_memory)):
        ids = np.array([3, 99, 0, 3])
        torch.testing.assert_close(found[ids].float(), values[ids], rtol=0, atol=tolerance)


def test_candidates_are_each_batch_example_and_then_drawn_ones_with_all_their_rows(tmp_path):
    labels = torch.arange(50) % 3
    stored = [unit_rows(50, 4, seed) for seed in range(3)]
    bank = Bank(labels, [build(tmp_path / str(n), v, dtype="float32")[0] for n, v in enumerate(stored)])
    ids = torch.tensor([7, 7, 30])
    found = bank.candidates(ids, extra_examples=20, rng=np.random.default_rng(1))
    drawn = found.ids[9::3]
    assert len(drawn) == 20 // 3
    assert len(set(drawn.tolist())) == len(drawn)
    expected = [(i, r) for i in [*ids.tolist(), *drawn.tolist()] for r in range(3)]
    assert found.ids.tolist() == [example for example, _ in expected]
    torch.testing.assert_close(found.rows, torch.stack([stored[r][i] for i, r in expected]))
    assert found.labels.tolist() == [int(labels[example]) for example, _ in expected]


def test_draws_are_seeded_and_never_more_than_there_are(tmp_path):
    bank = Bank(None, [build(tmp_path / "a", unit_rows(10, 4))[0]])
    ids = torch.tensor([1])
    one, same, other = (
        bank.candidates(ids, extra_examples=6, rng=np.random.default_rng(seed)).ids.tolist() for seed in (1, 1, 2)
    )
    assert one == same != other
    everything = bank.candidates(ids, extra_examples=4096, rng=np.random.default_rng(0))
    assert sorted(everything.ids[1:].tolist()) == list(range(10))
    assert everything.labels is None
    assert len(bank.candidates(ids, extra_examples=0, rng=np.random.default_rng(0)).ids) == 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_interrupted_or_different_bank_is_not_found(tmp_path, in_memory):
    values = unit_rows(20, 4)
    spec = RowSpec(rows=20, width=4)
    file = RowFile.create(tmp_path / "bank", spec, in_memory=in_memory)
    file.write(torch.arange(20), values)
    assert reopen(tmp_path / "bank", spec) is None
    file.seal(PROVENANCE)
    assert reopen(tmp_path / "bank", spec) is not None
    assert reopen(tmp_path / "bank", spec, provenance={"model": "other"}) is None
    assert reopen(tmp_path / "bank", RowSpec(rows=20, width=4, dtype="float32")) is None
    RowFile.create(tmp_path / "bank", spec, in_memory=in_memory)  # starts over
    assert reopen(tmp_path / "bank", spec) is None


def test_a_bank_with_unwritten_rows_cannot_be_sealed(tmp_path):
    file = RowFile.create(tmp_path / "bank", RowSpec(rows=3, width=2), in_memory=True)
    file.write(torch.tensor([0, 2]), torch.zeros(2, 2))
    with pytest.raises(AssertionError, match="every row"):
        file.seal(PROVENANCE)


def test_representations_that_are_not_finite_are_refused(tmp_path):
    file = RowFile.create(tmp_path / "bank", RowSpec(rows=2, width=2), in_memory=True)
    file.write(torch.arange(2), torch.tensor([[0.0, float("nan")], [1.0, 0.0]]))
    with pytest.raises(UserError, match="not finite"):
        file.seal(PROVENANCE)


@pytest.mark.parametrize("in_memory", [True, False])
def test_damage_is_named(tmp_path, in_memory):
    _, spec = build(tmp_path / "bank", unit_rows(20, 4))
    rows = tmp_path / "bank.rows"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"bank\.rows: expected 160 bytes, found 159 bytes"):
        reopen(tmp_path / "bank", spec, in_memory=in_memory)
    rows.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"bank\.rows: its checksum differs"):
        reopen(tmp_path / "bank", spec, in_memory=in_memory)
    rows.unlink()  # as the message says
    assert reopen(tmp_path / "bank", spec, in_memory=in_memory) is None
    (tmp_path / "bank.json").write_text(json.dumps({"spec": 1})[:-1])
    with pytest.raises(UserError, match=r"bank\.json: not a record"):
        reopen(tmp_path / "bank", spec, in_memory=in_memory)


def test_a_mapped_bank_has_its_place_on_disk_before_it_is_written(tmp_path):
    """Else writing to it on a full disk would end the process with SIGBUS, without an error."""
    RowFile.create(tmp_path / "bank", RowSpec(rows=1000, width=64), in_memory=False)
    assert (tmp_path / "bank.rows").stat().st_blocks * 512 >= 1000 * 64 * 2
