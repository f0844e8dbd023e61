import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from contraprune.engine import format as sparse_format
from contraprune.engine.format import read, write
from contraprune.errors import UserError

FACTS = {"model_type": "bert", "heads": [1, 2]}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def sparse(shape: tuple[int, ...], density: float) -> np.ndarray:
        values = rng.standard_normal(shape).astype(np.float32)
        return values * (rng.random(shape) < density)

    blocks = np.repeat(sparse((5, 9), 0.3), 4, axis=0) * (1 + np.arange(20, dtype=np.float32)[:, None])
    return {
        "dense": sparse((13, 7), 1),
        "tenth": sparse((31, 17), 0.1),
        "blocks": blocks,
        "one": np.eye(1, 50, dtype=np.float32),
        "zero": np.zeros((8, 5), np.float32),
        "no_rows": np.zeros((0, 5), np.float32),
        "no_columns": np.zeros((5, 0), np.float32),
        "vector": sparse((33,), 0.5),
        "scalar": np.float32(3.5).reshape(()),
        "cube": sparse((3, 4, 5), 0.2),
        "odd": np.array([[np.inf, -np.inf, 0, -0.0, 1e-45]], np.float32),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.sparse.safetensors"
    write(path, [(name, values, "float32") for name, values in tensors().items()], FACTS)
    return path


def shapes(arrays: dict[str, np.ndarray] | None = None) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in (arrays or tensors()).items()}


def test_every_tensor_comes_back_equal(file: Path) -> None:
    opened = read(file, shapes(), FACTS)
    for name, values in tensors().items():
        found = opened.values(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values, strict=True)


def test_zeros_are_not_stored_and_blocks_take_a_bit_per_four_rows(file: Path) -> None:
    entries = read(file, shapes(), FACTS).entries
    blocks, tenth = tensors()["blocks"], tensors()["tenth"]
    assert entries["dense"].nonzeros is None
    assert (entries["tenth"].nonzeros, entries["tenth"].block) == (np.count_nonzero(tenth), 1)
    assert (entries["blocks"].nonzeros, entries["blocks"].block) == (np.count_nonzero(blocks), 4)
    assert entries["blocks"].sizes() == {"values": 4 * np.count_nonzero(blocks), "mask": 6}


@pytest.mark.parametrize(("density", "bits_per_weight"), [(0.1, 0.1 * 16 + 0.469), (0.03, 0.03 * 16 + 0.194)])
def test_the_size_is_close_to_the_entropy_of_mask_and_values(
    tmp_path: Path, density: float, bits_per_weight: float
) -> None:
    """Entropy of the mask plus 16 bits a value: that of the weights' exponents is less, zstd's mask takes more."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((768, 768)).astype(np.float32) * (rng.random((768, 768)) < density)
    path = tmp_path / "f"
    write(path, [("w", matrix, "float16")], {})
    assert path.stat().st_size * 8 / matrix.size < 1.12 * bits_per_weight
    assert path.stat().st_size * 8 / matrix.size > 0.85 * bits_per_weight


def test_float16_rounds_and_int8_has_a_factor_per_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((40, 16)) * np.logspace(-3, 3, 40)[:, None]).astype(np.float32)
    table[7] = 0
    path = tmp_path / "f"
    write(path, [("half", table, "float16"), ("byte", table, "int8")], {})
    opened = read(path, {"half": table.shape, "byte": table.shape}, {})
    np.testing.assert_array_equal(opened.values("half"), table.astype(np.float16).astype(np.float32))
    step = np.abs(table).max(axis=1, keepdims=True) / 127
    assert (np.abs(opened.values("byte") - table) <= 0.501 * step).all()


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--values float16: w has values beyond its range"):
        write(tmp_path / "f", [("w", np.full((2, 2), 1e6, np.float32), "float16")], {})
    assert not (tmp_path / "f").exists()


def change_shape(expected: dict[str, tuple[int, ...]]) -> None:
    expected["tenth"] = (17, 31)


def drop(expected: dict[str, tuple[int, ...]]) -> None:
    del expected["dense"]


@pytest.mark.parametrize(("change", "message"), [(change_shape, "tenth: expected"), (drop, "tensors: expected")])
def test_another_models_file_is_refused(file: Path, change: object, message: str) -> None:
    expected = shapes()
    change(expected)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        read(file, expected, FACTS)


def test_other_facts_are_refused(file: Path) -> None:
    with pytest.raises(UserError, match="heads: expected"):
        read(file, shapes(), FACTS | {"heads": [2, 1]})


def test_a_later_version_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_format, "VERSION", 2)
    write(file, [], FACTS)
    monkeypatch.undo()
    with pytest.raises(UserError, match="expected version 1 of the sparse format, found '2'; update contraprune"):
        read(file, {}, FACTS)


def test_a_plain_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(save({"a": np.zeros(3, np.uint8)}))
    with pytest.raises(UserError, match="expected a file of contraprune's sparse format"):
        read(path, {}, {})


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(path: Path) -> None:
    opened = read(path, shapes(), FACTS)
    for name in shapes():
        opened.values(name)


@FUZZ
@given(at=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_changed_byte_is_an_error(file: Path, at: float, bits: int) -> None:
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[int(at * len(whole))] ^= bits
    broken = file.with_name("broken")
    broken.write_bytes(damaged)
    with pytest.raises(UserError):
        read_all(broken)


@FUZZ
@given(length=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_an_error(file: Path, length: float) -> None:
    whole = file.read_bytes()
    broken = file.with_name("broken")
    broken.write_bytes(whole[: int(length * len(whole))])
    with pytest.raises(UserError):
        read_all(broken)


def resigned(file: Path, header: str, parts: dict[str, np.ndarray]) -> Path:
    """A file whose checksum is right, written without the package's help."""
    digest = hashlib.sha256()
    pieces = [header.encode()]
    for name in sorted(parts):
        pieces += [name.encode(), parts[name].tobytes()]
    for piece in pieces:
        digest.update(struct.pack("<Q", len(piece)) + piece)
    metadata = {"format": "contraprune-sparse", "version": "1", "header": header, "sha256": digest.hexdigest()}
    path = file.with_name("forged")
    path.write_bytes(save(parts, metadata=metadata))
    return path


def contents(file: Path) -> tuple[str, dict[str, np.ndarray]]:
    raw = file.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size])["__metadata__"]["header"], load_file(file)


def test_the_forger_of_these_tests_knows_the_format(file: Path) -> None:
    read_all(resigned(file, *contents(file)))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.lists(st.integers())
)


@FUZZ
@given(data=st.data())
def test_a_forged_header_is_an_error_or_harmless(file: Path, data: st.DataObject) -> None:
    header, parts = contents(file)
    content = json.loads(header)
    name = data.draw(st.sampled_from(sorted(content["tensors"])))
    field = data.draw(st.sampled_from(["shape", "dtype", "nonzeros", "block"]))
    content["tensors"][name][field] = data.draw(VALUES)
    try:
        read_all(resigned(file, json.dumps(content), parts))
    except UserError:
        return


@FUZZ
@given(data=st.data())
def test_forged_data_are_an_error_or_harmless(file: Path, data: st.DataObject) -> None:
    header, parts = contents(file)
    name = data.draw(st.sampled_from(sorted(parts)))
    raw = data.draw(st.binary(max_size=40))
    parts[name] = np.frombuffer(data.draw(st.sampled_from([raw, zstandard.compress(raw)])), np.uint8)
    try:
        read_all(resigned(file, header, parts))
    except UserError:
        return


def test_a_mask_with_too_many_bits_is_an_error(file: Path) -> None:
    header, parts = contents(file)
    size = -(-31 * 17 // 8)
    parts["tenth:mask"] = np.frombuffer(zstandard.compress(b"\xff" * size), np.uint8)
    with pytest.raises(UserError, match="the mask of tenth does not have"):
        read_all(resigned(file, header, parts))


def test_a_frame_that_claims_another_size_is_not_unpacked(file: Path) -> None:
    header, parts = contents(file)
    parts["tenth:mask"] = np.frombuffer(zstandard.compress(bytes(10**8)), np.uint8)
    with pytest.raises(UserError, match="tenth: expected 66 bytes of mask, found 100000000"):
        read_all(resigned(file, header, parts))
