"""Representation banks: what the contrastive losses compare the model being pruned with.

A bank of a source (pre-trained model, fine-tuned teacher, snapshots) holds R representations of every training
example. Each of the R is one :class:`RowFile`: an array allocated once, written by example id in any order, and
sealed with a checksum when every row is there. Building it therefore costs time linear in the rows, and a bank
that was interrupted is never mistaken for a whole one.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from contraprune.errors import UserError
from contraprune.files import write_bytes, write_json

FORMAT = 1
DType = Literal["float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """Shape and dtype of the rows of a file: (rows, width)."""

    rows: int
    width: int
    dtype: DType = "float16"

    @property
    def nbytes(self) -> int:
        return self.rows * self.width * np.dtype(self.dtype).itemsize


class RowFile:
    """A (rows, width) array in one file, ``NAME.rows`` (raw, little-endian), with its record ``NAME.json``.

    The record is written last and by rename: a file without it was interrupted and is not complete. With
    ``in_memory=False`` the array is memory-mapped, so that resident memory does not grow with it.
    """

    def __init__(self, path: Path, spec: RowSpec, array: np.ndarray, *, sealed: bool) -> None:
        self.path = path
        self.spec = spec
        self._array = array
        self._written = None if sealed else np.zeros(spec.rows, dtype=bool)

    @classmethod
    def create(cls, path: Path, spec: RowSpec, *, in_memory: bool) -> "RowFile":
        """Allocates the array and removes what an earlier, interrupted or outdated build left at ``path``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        shape = (spec.rows, spec.width)
        if in_memory:
            return cls(path, spec, np.empty(shape, dtype=spec.dtype), sealed=False)
        rows_file = path.with_suffix(".rows")
        _allocate(rows_file, spec.nbytes)
        mapped = np.memmap(rows_file, dtype=spec.dtype, mode="r+", shape=shape)
        return cls(path, spec, mapped, sealed=False)

    @classmethod
    def open(
        cls,
        path: Path,
        spec: RowSpec,
        *,
        in_memory: bool,
        provenance: dict[str, Any],
        advice: str = "delete it to rebuild",
    ) -> "RowFile | None":
        """The sealed file at ``path``, or None where none was sealed with this spec and provenance.

        Args:
            advice: what to do about a damaged one, as the message ends.

        Raises:
            UserError: the file was sealed, but its size or checksum is not what was sealed.
        """
        record_file, rows_file = path.with_suffix(".json"), path.with_suffix(".rows")
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{record_file}: not a record of a bank ({error}); {advice}") from error
        if not isinstance(record, dict) or not rows_file.is_file():
            return None
        if record.get("provenance") != provenance or record.get("spec") != _as_json(spec):
            return None
        found = rows_file.stat().st_size
        if found != spec.nbytes:
            raise UserError(f"{rows_file}: expected {spec.nbytes} bytes, found {found} bytes; {advice}")
        array: np.ndarray
        shape = (spec.rows, spec.width)
        if in_memory:
            array = np.fromfile(rows_file, dtype=spec.dtype).reshape(shape)
        else:
            array = np.memmap(rows_file, dtype=spec.dtype, mode="r", shape=shape)
        if _checksum(array) != record.get("sha256"):
            raise UserError(f"{rows_file}: its checksum differs from the one it was sealed with; {advice}")
        return cls(path, spec, array, sealed=True)

    @property
    def sealed(self) -> bool:
        return self._written is None

    @property
    def in_memory(self) -> bool:
        """Held as a whole, not mapped from disk."""
        return not isinstance(self._array, np.memmap)

    def write(self, ids: Int[Tensor, " batch"], values: Float[Tensor, "batch width"]) -> None:
        assert self._written is not None, "a sealed bank is read-only"
        index = ids.cpu().numpy()
        self._array[index] = values.detach().float().cpu().numpy().astype(self.spec.dtype)
        self._written[index] = True

    def seal(self, provenance: dict[str, Any]) -> None:
        """Flushes the rows to disk, then marks the file complete.

        Raises:
            UserError: values that are not finite were written (a diverged model).
        """
        assert self._written is not None, "a sealed bank is read-only"
        assert self._written.all(), "every row has to be written before sealing"
        if not _all_finite(self._array):
            raise UserError(f"{self.path.name}: the model gave representations that are not finite")
        rows_file = self.path.with_suffix(".rows")
        if isinstance(self._array, np.memmap):
            self._array.flush()
        else:
            write_bytes(rows_file, self._array.data.cast("B"))
        record = {"format": FORMAT, "spec": _as_json(self.spec), "provenance": provenance}
        write_json(self.path.with_suffix(".json"), record | {"sha256": _checksum(self._array)})
        self._written = None

    def __getitem__(self, ids: np.ndarray) -> Float[Tensor, "batch width"]:
        return torch.from_numpy(np.asarray(self._array.take(ids, axis=0)))


class Candidates(NamedTuple):
    """Bank rows to contrast a batch with: candidates (b) and (c) of one source."""

    rows: Float[Tensor, "n dim"]
    ids: Int[Tensor, " n"]
    labels: Int[Tensor, " n"] | None

    def joined(self, more: "Candidates") -> "Candidates":
        """These, then more of them."""
        if len(self.ids) == 0:
            return more
        together = None if self.labels is None or more.labels is None else torch.cat([self.labels, more.labels])
        return Candidates(torch.cat([self.rows, more.rows]), torch.cat([self.ids, more.ids]), together)


class Bank:
    """The representations of one source: R sealed row files over the same training examples."""

    def __init__(self, labels: Int[Tensor, " examples"] | None, files: Sequence[RowFile] = ()) -> None:
        self.labels = labels
        self.files = list(files)

    def candidates(self, ids: Int[Tensor, " batch"], *, extra_examples: int, rng: np.random.Generator) -> Candidates:
        """The R rows of each example of the batch, then those of ``extra_examples // R`` drawn ones.

        The extra examples are drawn without replacement from the whole training set (all of it where it is
        smaller), in time independent of its size.
        """
        examples, copies = self.files[0].spec.rows, len(self.files)
        extra = rng.choice(examples, min(extra_examples // copies, examples), replace=False, shuffle=False)
        chosen = np.concatenate([ids.cpu().numpy(), extra])
        found = [file[chosen] for file in self.files]
        rows = found[0] if copies == 1 else torch.stack(found, dim=1).flatten(0, 1)
        row_ids = torch.from_numpy(chosen).repeat_interleave(copies)
        return Candidates(rows, row_ids, None if self.labels is None else self.labels[row_ids])


def _as_json(spec: RowSpec) -> dict[str, Any]:
    return {"rows": spec.rows, "width": spec.width, "dtype": spec.dtype}


def _allocate(path: Path, size: int) -> None:
    """A file of ``size`` bytes that are there: a mapped file that has none yet dies of SIGBUS on a full disk."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _chunks(array: np.ndarray, size: int = 1 << 16) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


def _checksum(array: np.ndarray) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(array):
        digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()


def _all_finite(array: np.ndarray) -> bool:
    return all(bool(np.isfinite(chunk).all()) for chunk in _chunks(array))
