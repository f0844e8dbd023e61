"""The C interface refuses wrong sizes with an error code, whatever the caller says."""

import ctypes
from typing import Any

import numpy as np
import pytest

from contraprune.engine import native
from contraprune.engine.native import _Sizes

GOOD = {"isa": 0, "threads": 1, "hidden": 8, "embedding": 8, "head_size": 4, "layers": 1, "activation": 1}
GOOD |= {"vocabulary": 5, "positions": 6, "types": 1, "span": 0}

_ZEROS = np.zeros(4096, np.float32)  # outlives the calls that read it


@pytest.fixture
def loaded() -> Any:
    found = native.library()
    if found is None:
        pytest.skip("needs the compiled engine")
    return found


def new(loaded: Any, **changes: int) -> tuple[Any, int]:
    status = ctypes.c_int32()
    handle = loaded.cp_new(ctypes.byref(_Sizes(**(GOOD | changes), epsilon=1e-5)), ctypes.byref(status))
    return handle, status.value


@pytest.mark.parametrize("name", ["threads", "hidden", "embedding", "head_size", "vocabulary", "positions"])
@pytest.mark.parametrize("value", [0, -1, -(2**63), 2**62])
def test_sizes_out_of_range(loaded: Any, name: str, value: int) -> None:
    assert new(loaded, **{name: value}) == (None, 2)


@pytest.mark.parametrize("changes", [{"layers": -1}, {"layers": 2**40}, {"activation": 5}, {"types": -1}, {"span": -1}])
def test_counts_out_of_range(loaded: Any, changes: dict[str, int]) -> None:
    assert new(loaded, **changes) == (None, 2)


@pytest.mark.parametrize("isa", [-1, 3, 99])
def test_an_unknown_instruction_set(loaded: Any, isa: int) -> None:
    assert new(loaded, isa=isa) == (None, 5)


def test_parts_of_the_wrong_size_or_place_and_a_forward_without_them(loaded: Any) -> None:
    handle, _ = new(loaded)
    data = _ZEROS.ctypes.data
    assert loaded.cp_layer(handle, 0, 2, 3) == 0
    for index, heads, neurons in ((-1, 2, 3), (1, 2, 3), (0, -1, 3), (0, 2, -3), (0, 2**40, 3), (0, 2, 2**40)):
        assert loaded.cp_layer(handle, index, heads, neurons) == 2
    assert loaded.cp_matrix(handle, 0, 1, 24, 8, data, data) == 0
    for index, slot, rows, columns in (
        (0, 1, 23, 8), (0, 1, 24, 9), (0, 1, -24, -8), (0, 0, 8, 8), (-1, 1, 24, 8), (1, 1, 24, 8), (-2, 0, 8, 8),
        (0, 5, 8, 8), (0, -1, 8, 8), (0, 2**20, 8, 8), (0, 3, 8, 8), (0, 4, 8, 8),
    ):  # fmt: skip
        assert loaded.cp_matrix(handle, index, slot, rows, columns, data, data) == 2
    assert loaded.cp_vector(handle, -1, 0, 40, data) == 0
    for index, part, size in (
        (-1, 0, 39), (-1, 0, -40), (-1, 1, 40), (-1, 3, 9), (0, 0, 40), (-1, 6, 8), (0, 5, 0), (0, 10, 8), (0, -1, 8),
    ):  # fmt: skip
        assert loaded.cp_vector(handle, index, part, size, data) == 2
    ids = np.zeros(8, np.int64)
    starts = np.array([0, 3])
    pointer = ids.ctypes.data
    assert loaded.cp_forward(handle, 3, 1, starts.ctypes.data, pointer, pointer, pointer, data) == 4
    loaded.cp_free(handle)


def complete(loaded: Any) -> Any:
    handle, _ = new(loaded)
    zeros = _ZEROS.ctypes.data
    assert loaded.cp_layer(handle, 0, 2, 3) == 0
    for slot, rows, columns in ((1, 24, 8), (2, 8, 8), (3, 3, 8), (4, 8, 3)):
        assert loaded.cp_matrix(handle, 0, slot, rows, columns, zeros, None) == 0
    for index, part, size in ((-1, 0, 40), (-1, 1, 48), (-1, 2, 8), (-1, 3, 8), (-1, 4, 8)):
        assert loaded.cp_vector(handle, index, part, size, zeros) == 0
    for part in (6, 7, 8, 9):
        assert loaded.cp_vector(handle, 0, part, 8, zeros) == 0
    return handle


@pytest.mark.parametrize(
    ("tokens", "starts", "status"),
    [
        (3, [0, 3], 0),
        (3, [0, 1, 3], 0),
        (0, [0, 0], 2),
        (-1, [0, -1], 2),
        (2**40, [0, 2**40], 2),
        (3, [0, 2], 2),
        (3, [1, 3], 2),
        (3, [0, 0, 3], 2),
        (3, [0, 4, 3], 2),
        (3, [0, 1, 2, 3, 3], 2),
    ],
)
def test_sequences_have_to_add_up(loaded: Any, tokens: int, starts: list[int], status: int) -> None:
    handle = complete(loaded)
    ids, out, begin = np.zeros(8, np.int64), np.zeros(64, np.float32), np.array(starts)
    pointer = ids.ctypes.data
    found = loaded.cp_forward(handle, tokens, len(starts) - 1, begin.ctypes.data, pointer, pointer, pointer,
                              out.ctypes.data)  # fmt: skip
    assert found == status
    loaded.cp_free(handle)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [-1, 7, 2**40, -(2**63)])
def test_indices_out_of_their_tables(loaded: Any, which: int, value: int) -> None:
    handle = complete(loaded)
    columns = [np.zeros(3, np.int64) for _ in range(3)]
    columns[which][1] = value
    out, begin = np.zeros(64, np.float32), np.array([0, 3])
    pointers = [column.ctypes.data for column in columns]
    assert loaded.cp_forward(handle, 3, 1, begin.ctypes.data, *pointers, out.ctypes.data) == 3
    loaded.cp_free(handle)
