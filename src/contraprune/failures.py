"""Failures of the machine, not of the program, in one line: a full disk, and too little memory."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contraprune.errors import UserError

TRAINING = (
    "lower --per_device_train_batch_size (and raise --gradient_accumulation_steps by as much) or --max_length, "
    "in another --output_dir or with --overwrite"
)
READING = "lower --per_device_eval_batch_size or --bank_memory_gb, and the same command continues"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the writers of safetensors and torch, which know no errno, say of a file that cannot grow.
_CANNOT_GROW = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "StreamWriter failed writing",
    "iostream error",
)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def explained(place: str | Path, advice: str) -> Iterator[None]:
    """Turns a full disk and too little memory into errors that say what to do.

    Args:
        place: what is written to.
        advice: what to lower when memory runs out.

    Raises:
        UserError: one of the two happened.
    """
    try:
        yield
    except Exception as error:
        found = explain(error, place, advice)
        if found is None:
            raise
        raise found from error


def explain(error: BaseException, place: str | Path, advice: str) -> UserError | None:
    """The error that :func:`explained` raises for another; None for any that it leaves alone."""
    if isinstance(error, UserError):
        return None
    for cause in _causes(error):
        if (isinstance(cause, OSError) and cause.errno in _FULL) or _says(cause, _CANNOT_GROW):
            return UserError(
                f"{place}: the disk is full, or a limit on file sizes was reached ({_first_line(cause)}); what was "
                "saved before is whole: make room, and the same command continues from there"
            )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _says(error, _NO_MEMORY)):
        return UserError(f"out of memory ({_first_line(error)}): {advice}")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{text.splitlines()[0]:.160}"
