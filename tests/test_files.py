"""Files that are whole or absent, and folders whose damage is noticed."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from contraprune.errors import UserError
from contraprune.files import SUMS, check, replace_folder, seal, sealed, stays_inside, write_json, write_text


def test_text_is_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "notes.txt"
    write_text(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()

    def power_cut(descriptor: int) -> None:
        assert path.read_text(encoding="utf-8") == "naïve\n"
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        write_text(path, "x" * 10_000)
    assert path.read_text(encoding="utf-8") == "naïve\n"
    monkeypatch.undo()
    write_text(path, "second")
    assert path.read_text() == "second"
    assert [file.name for file in path.parent.iterdir()] == ["notes.txt"]


def test_json_is_readable_and_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == ('{\n  "b": [\n    1,\n    null\n  ],\n  "a": "é"\n}\n')
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": torch.tensor(1)})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": [1, None], "a": "é"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    write_text(folder / "a.txt", "first")
    write_text(folder / "inner" / "b.txt", "second")
    seal(folder)
    return folder


def test_sums_are_those_of_sha256sum_and_of_every_file(folder):
    assert sealed(folder)
    found = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout == "a.txt: OK\ninner/b.txt: OK\n"
    check(folder, "")


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("name", ["a.txt", "inner/b.txt", SUMS])
def test_every_flipped_bit_and_every_missing_byte_is_noticed(folder, name, bit):
    whole = (folder / name).read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=r"run again$"):
            check(folder, "run again")
    (folder / name).write_bytes(whole[:-1])
    if name != SUMS:  # whose last byte ends a line, and says nothing
        with pytest.raises(UserError, match=f"{name}: damaged or edited"):
            check(folder, "run again")
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name}: listed in {SUMS}, but missing"):
            check(folder, "run again")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "inner/../../secret", "..\\secret", "C:\\secret", "a\0b"])
def test_names_that_lead_outside_are_refused(folder, name):
    assert not stays_inside(name)
    assert stays_inside(name.replace("..", "dots").strip("/").replace("\0", "").replace("C:\\", ""))
    (folder / SUMS).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(UserError, match="line 1: expected a checksum and a file"):
        check(folder, "run again")


def test_a_folder_is_replaced_only_by_a_whole_one(folder, tmp_path, monkeypatch):
    write_text(tmp_path / "new" / "c.txt", "third")
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("renamed before it was sealed"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        replace_folder(tmp_path / "new", folder)
    check(folder, "")
    monkeypatch.undo()
    replace_folder(tmp_path / "new", folder)
    assert sorted(path.name for path in folder.iterdir()) == [SUMS, "c.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
