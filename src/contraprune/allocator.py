"""How the C library hands out memory while a model trains on a CPU."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_TOP_PAD = 64 << 20


def keep_freed_memory() -> bool:
    """Has glibc keep what one step of training frees for the next one, in this process from now on.

    By default it returns every larger block to the system, which hands it out again a page fault and 4 KiB of zeros
    at a time: a tenth of a step of a small model on short texts. The process stays as large as it ever was. Elsewhere
    than on Linux with glibc, and where the environment sets ``MALLOC_...`` itself, nothing is changed.

    Returns whether it was.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)
