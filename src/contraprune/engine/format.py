"""The sparse format: a model's tensors in one checked file.

``model.sparse.safetensors`` is a safetensors file whose metadata holds a JSON header and a SHA-256 over header and
data. Each tensor of the model becomes one to three byte tensors, each one zstd frame:

- ``NAME:values``: its values, or only the kept ones of a matrix that is sparse enough, little-endian, the bytes of
  equal significance together (which compresses better);
- ``NAME:mask``: for a sparse one a bit per weight, or per 4×1 block (4 rows, 1 column) where the zeros come so;
- ``NAME:scales``: for int8 the float32 factor of each row.

Nothing in a file is believed: the checksum, then every size against the model that config.json describes, each
frame's size before it is unpacked, and the number of bits that are set.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from contraprune.errors import UserError
from contraprune.files import write_bytes

FILE = "model.sparse.safetensors"
FORMAT, VERSION = "contraprune-sparse", 1
DType = Literal["float32", "float16", "int8"]
_LEVEL = 12
_BLOCK = 4
_LARGEST = 2**31 - 1  # elements of one tensor
_SPARSE_BELOW = 0.9  # density


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How one tensor is stored."""

    shape: tuple[int, ...]
    dtype: DType
    nonzeros: int | None = None  # values stored of a sparse tensor; None: all are
    block: int = 1  # rows that one bit of the mask stands for

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def kept(self) -> int:
        return self.numel if self.nonzeros is None else self.nonzeros

    def sizes(self) -> dict[str, int]:
        """Unpacked bytes of each part."""
        sizes = {"values": self.kept * np.dtype(self.dtype).itemsize}
        if self.nonzeros is not None:
            sizes["mask"] = -(-(self.numel // self.block) // 8)
        if self.dtype == "int8":
            sizes["scales"] = self.shape[0] * 4
        return sizes


def write(path: Path, tensors: Iterable[tuple[str, np.ndarray, DType]], facts: Mapping[str, Any]) -> None:
    """Writes (name, float32 values, dtype to store them in) to a file that is whole or absent.

    Args:
        facts: what else the reader has to find equal, as JSON; see ``read``.

    Raises:
        UserError: a value is too large for float16.
    """
    entries: dict[str, Entry] = {}
    parts: dict[str, np.ndarray] = {}
    for name, values, dtype in tensors:
        entries[name], pieces = _pack(name, values, dtype)
        parts |= {f"{name}:{part}": np.frombuffer(_compress(data), np.uint8) for part, data in pieces.items()}
    header = json.dumps({"facts": facts, "tensors": {name: asdict(entry) for name, entry in entries.items()}})
    metadata = {"format": FORMAT, "version": str(VERSION), "header": header, "sha256": _checksum(header, parts)}
    write_bytes(path, save(parts, metadata=metadata))


class SparseFile:
    """A checked file. ``values`` gives any of its tensors, dense and float32."""

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], facts: Mapping[str, Any], parts: Mapping[str, np.ndarray]
    ) -> None:
        self.path = path
        self.entries = entries
        self.facts = facts
        self._parts = parts

    def values(self, name: str) -> np.ndarray:
        """The tensor ``name``, float32, in its shape.

        Raises:
            UserError: what is stored is not what the header says.
        """
        entry = self.entries[name]
        raw = {part: self._unpack(name, part, size) for part, size in entry.sizes().items()}
        flat = _unshuffle(raw.pop("values"), entry.dtype).astype(np.float32, copy=False)
        if entry.nonzeros is not None:
            flat = self._scatter(name, entry, flat, raw["mask"])
        values = flat.reshape(entry.shape)
        if "scales" in raw:
            scales = np.frombuffer(raw["scales"], "<f4")
            values = values * scales.reshape(-1, *[1] * (len(entry.shape) - 1))
        return values

    def _scatter(self, name: str, entry: Entry, kept: np.ndarray, packed: bytes) -> np.ndarray:
        count = entry.numel // entry.block
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))
        if bits[count:].any() or int(bits.sum()) * entry.block != entry.nonzeros:
            _damaged(self.path, f"the mask of {name} does not have {entry.nonzeros} weights")
        mask = bits[:count].view(bool)
        flat = np.zeros(entry.numel, np.float32)
        if entry.block == 1:
            flat[mask] = kept
        else:
            columns = entry.shape[1]
            flat.reshape(-1, entry.block, columns).swapaxes(1, 2)[mask.reshape(-1, columns)] = kept.reshape(
                -1, entry.block
            )
        return flat

    def _unpack(self, name: str, part: str, size: int) -> bytes:
        data = self._parts[f"{name}:{part}"].data
        try:
            found = zstandard.frame_content_size(data)
            if found != size:
                _damaged(self.path, f"{name}: expected {size} bytes of {part}, found {found}")
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=max(1, size), allow_extra_data=False)
        except (zstandard.ZstdError, MemoryError) as error:
            _damaged(self.path, f"{name}: {part} cannot be unpacked ({error})")
        if len(raw) != size:
            _damaged(self.path, f"{name}: expected {size} bytes of {part}, found {len(raw)}")
        return raw


def read(path: Path, shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any]) -> SparseFile:
    """Opens a file of a model with these tensors and facts, and checks all that can be checked without unpacking.

    Raises:
        UserError: the file is missing, damaged, of a later version, or that of another model.
    """
    metadata, parts = _read_container(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: expected a file of contraprune's sparse format, found another safetensors file")
    if metadata.get("version") != str(VERSION):
        found = f"{metadata.get('version')!r:.20}"
        raise UserError(f"{path}: expected version {VERSION} of the sparse format, found {found}; update contraprune")
    header = metadata.get("header", "")
    if metadata.get("sha256") != _checksum(header, parts):
        _damaged(path, "its checksum is not the one it was written with")
    try:
        content = json.loads(header)
        entries = {name: _entry(**record) for name, record in content["tensors"].items()}
        found_facts = content["facts"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _damaged(path, f"its header cannot be read ({' '.join(str(error).split()):.80})")
    _compare(path, "tensors", sorted(shapes), sorted(entries))
    for name, shape in shapes.items():
        _compare(path, name, [*shape], [*entries[name].shape])
    _compare(
        path, "parts", sorted(f"{name}:{part}" for name, e in entries.items() for part in e.sizes()), sorted(parts)
    )
    for name, fact in facts.items():
        _compare(path, name, fact, found_facts.get(name) if isinstance(found_facts, dict) else None)
    return SparseFile(path, entries, facts, parts)


def _read_container(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            parts = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise UserError(f"{path}: not a safetensors file, or cut off ({' '.join(str(error).split()):.100})") from error
    for name, part in parts.items():
        if part.dtype != np.uint8 or part.ndim != 1:
            _damaged(path, f"{name:.80}: expected bytes, found {part.dtype}{list(part.shape)}")
    return metadata, parts


def _entry(*, shape: Any, dtype: Any, nonzeros: Any, block: Any) -> Entry:
    """An entry of a header that may hold anything."""
    sizes_ok = isinstance(shape, list) and all(type(size) is int and 0 <= size <= _LARGEST for size in shape)
    if not sizes_ok or math.prod(shape) > _LARGEST:
        raise ValueError(f"shape {shape!r:.60}")
    entry = Entry(shape=tuple(shape), dtype=dtype, nonzeros=nonzeros, block=block)
    if dtype not in get_args(DType) or (dtype == "int8" and (not shape or nonzeros is not None)):
        raise ValueError(f"dtype {dtype!r:.60}")
    if nonzeros is not None and not (type(nonzeros) is int and 0 <= nonzeros <= entry.numel):
        raise ValueError(f"nonzeros {nonzeros!r:.60}")
    if type(block) is not int or block not in (1, _BLOCK) or (block != 1 and not _can_be_blocks(entry.shape)):
        raise ValueError(f"block {block!r:.60}")
    return entry


def _can_be_blocks(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] % _BLOCK == 0 and math.prod(shape) > 0


def _compare(path: Path, what: str, expected: Any, found: Any) -> None:
    if expected != found or type(expected) is not type(found):
        raise UserError(f"{path}: {what}: expected {f'{expected!r:.100}'} of config.json, found {f'{found!r:.100}'}")


def _damaged(path: Path, reason: str) -> NoReturn:
    raise UserError(f"{path}: damaged: {reason}")


def _pack(name: str, values: np.ndarray, dtype: DType) -> tuple[Entry, dict[str, bytes]]:
    values = np.asarray(values, np.float32, order="C")
    if dtype == "int8":
        scales = np.abs(values).reshape(len(values), -1).max(axis=1, initial=0) / 127
        safe = np.where(scales > 0, scales, 1).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
        entry = Entry(shape=values.shape, dtype=dtype)
        return entry, {
            "values": np.rint(values / safe).astype(np.int8).tobytes(),
            "scales": scales.astype("<f4").tobytes(),
        }
    with np.errstate(over="ignore"):  # looked at below
        stored = values.astype(dtype)
    if dtype == "float16" and not np.isfinite(stored[np.isfinite(values)]).all():
        raise UserError(f"--values float16: {name} has values beyond its range; use float32")
    mask = values != 0
    nonzeros = int(np.count_nonzero(mask))
    if values.ndim < 2 or nonzeros >= _SPARSE_BELOW * max(1, values.size):
        return Entry(shape=values.shape, dtype=dtype), {"values": _shuffle(stored)}
    if _can_be_blocks(values.shape):
        blocks = mask.reshape(-1, _BLOCK, values.shape[1])
        any_in_block = blocks.any(axis=1)
        if nonzeros == _BLOCK * int(np.count_nonzero(any_in_block)):
            kept = stored.reshape(blocks.shape).swapaxes(1, 2)[any_in_block]
            entry = Entry(shape=values.shape, dtype=dtype, nonzeros=nonzeros, block=_BLOCK)
            return entry, {"values": _shuffle(kept), "mask": np.packbits(any_in_block).tobytes()}
    entry = Entry(shape=values.shape, dtype=dtype, nonzeros=nonzeros)
    return entry, {"values": _shuffle(stored[mask]), "mask": np.packbits(mask).tobytes()}


def _shuffle(values: np.ndarray) -> bytes:
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.reshape(-1, 1).view(np.uint8).T.tobytes()


def _unshuffle(raw: bytes, dtype: DType) -> np.ndarray:
    little = np.dtype(dtype).newbyteorder("<")
    planes = np.frombuffer(raw, np.uint8).reshape(little.itemsize, -1)
    return planes.T.copy().view(little).reshape(-1)


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(data)


def _checksum(header: str, parts: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for piece in _hashed(header, parts):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


def _hashed(header: str, parts: Mapping[str, np.ndarray]) -> Iterator[Any]:
    yield header.encode()
    for name in sorted(parts):
        yield name.encode()
        yield parts[name].data
