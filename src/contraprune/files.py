"""Files and folders that are whole or absent, and checksums that tell when one was damaged later.

Everything is written under a temporary name, synced to disk and renamed: after a crash there is the old or the new
content, never half of one. A folder (a model, a checkpoint, an export) is sealed with ``SHA256SUMS``, which
``sha256sum --check`` reads too.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from contraprune.errors import UserError

SUMS = "SHA256SUMS"
_CHUNK = 1 << 20


def model_in(path: str | os.PathLike[str]) -> str:
    """``path``, or its ``model/`` where it is the directory of a run."""
    inner = Path(path) / "model"
    found = not (Path(path) / "config.json").is_file() and (inner / "config.json").is_file()
    return str(inner) if found else str(path)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file by way of a temporary one: a reader or a crash sees the old or the new content, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """:func:`write_text` of ``content`` as indented JSON."""
    write_text(path, as_json(content))


def as_json(content: Any) -> str:
    """Indented JSON, as every file of ours has it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def temporary_name(path: Path) -> Path:
    """Where a file or folder is written before it gets its name."""
    return path.with_name(path.name + ".tmp")


def replace(temporary: Path, path: Path) -> None:
    """Gives a file that was synced its name, for good."""
    temporary.replace(path)
    _sync(path.parent)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Seals a folder and puts it in the place of another, which is there until the new one is whole."""
    seal(temporary)
    earlier = folder.with_name(folder.name + ".old")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.replace(earlier)
    replace(temporary, folder)
    shutil.rmtree(earlier, ignore_errors=True)


def seal(folder: Path) -> None:
    """Syncs every file of a folder to disk, then writes their checksums into it."""
    (folder / SUMS).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    write_sums(folder, {path.relative_to(folder).as_posix(): sha256(path) for path in files})
    for inner in {path.parent for path in files}:
        _sync(inner)


def write_sums(folder: Path, sums: dict[str, str]) -> None:
    """Writes checksums (hex) of files in ``folder`` by their names there."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def sealed(folder: Path) -> bool:
    """Whether a folder was sealed; for whether it still is what it was then, see :func:`check`."""
    return (folder / SUMS).is_file()


def check(folder: Path, advice: str) -> None:
    """Compares the files of a folder with its checksums; without effect on a folder that was never sealed.

    Args:
        advice: what to do about a damaged one, as the message ends.

    Raises:
        UserError: a file is missing or was changed, or the checksums themselves were.
    """
    if not sealed(folder):
        return
    for name, digest in _read_sums(folder, advice).items():
        path = folder / name
        try:
            found = sha256(path) if path.is_file() else None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
        if found is None:
            raise UserError(f"{path}: listed in {SUMS}, but missing; {advice}")
        if found != digest:
            expected = f"expected the checksum {digest[:8]}… of {SUMS}, found {found[:8]}…"
            raise UserError(f"{path}: damaged or edited ({expected}); {advice}")


def _read_sums(folder: Path, advice: str) -> dict[str, str]:
    sums = {}
    for number, line in enumerate((folder / SUMS).read_bytes().splitlines(), start=1):
        digest, _, name = line.decode("utf-8", errors="replace").partition("  ")
        if len(digest) != 64 or not name or not stays_inside(name):
            raise UserError(f"{folder / SUMS}, line {number}: expected a checksum and a file; {advice}")
        sums[name] = digest
    if not sums:
        raise UserError(f"{folder / SUMS}: expected checksums, found an empty file; {advice}")
    return sums


def stays_inside(name: str) -> bool:
    """Whether a path that somebody else wrote down leads to a place below the folder it is meant for."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not any(part == ".." or "\0" in part or ":" in part or part == "/" for part in parts)


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Has what was written to a file, or the names in a folder, survive a loss of power."""
    if os.name == "nt" and path.is_dir():  # which has no such thing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
