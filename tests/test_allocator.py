"""The allocator's settings, asked of the kernel: how many page faults the same allocations cost."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, numpy
from contraprune.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() is (sys.argv[2] == "True")
def step():
    return [numpy.ones(size, numpy.float32) for size in (100_000, 3_000_000, 12_000_000)]  # 0.4, 12 and 48 MB
for _ in range(10):  # until it has enough
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: object, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean["NUMPY_MADVISE_HUGEPAGE"] = "0"  # a fault a page
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return int(subprocess.run(command, env=clean | environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again():
    returned = page_faults("return", None)
    assert page_faults("keep", True) < returned / 5
    assert page_faults("keep", False, MALLOC_MMAP_THRESHOLD_="131072") > returned / 2  # left as the user has it
