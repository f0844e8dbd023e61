"""Which failures of the machine are recognised, and what is said of them."""

import errno
import os

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from contraprune.errors import UserError
from contraprune.failures import explain, explained


def wrapped(cause):
    """An error of another class that a full disk led to, as torch raises it."""
    try:
        try:
            raise cause
        except Exception:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as in torch, without "from"
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        wrapped(RuntimeError("basic_ios::clear: iostream error")),
        wrapped(OSError(errno.ENOSPC, "full")),
    ],
)
def test_a_full_disk(error):
    assert str(explain(error, "runs/a", "")).startswith(
        "runs/a: the disk is full, or a limit on file sizes was reached ("
    )


def real(allocate):
    try:
        allocate()
    except (MemoryError, RuntimeError) as error:
        return error
    raise AssertionError("there is more memory than that?")


@pytest.mark.parametrize(
    "error",
    [
        real(lambda: torch.empty(10**15)),
        real(lambda: np.empty(10**15)),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of 8 GiB"),
    ],
)
def test_too_little_memory(error):
    found = str(explain(error, "runs/a", "lower it"))
    assert found.startswith("out of memory (")
    assert found.endswith("): lower it")
    assert "\n" not in found


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "gone"), UserError("disk full")]
)
def test_other_errors_are_left_as_they_are(error):
    assert explain(error, "runs/a", "") is None
    with pytest.raises(type(error)) as caught, explained("runs/a", ""):
        raise error
    assert caught.value is error
