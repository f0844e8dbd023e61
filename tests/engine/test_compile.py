"""Which commands compile the kernels, and for which machine; a stand-in for the compiler writes them down."""

import sys
from pathlib import Path

import pytest

from contraprune.engine import compile as kernels

COMPILER = """#!{python}
import sys
from pathlib import Path
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
Path(sys.argv[sys.argv.index("-o") + 1]).write_text("compiled")
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the arguments of every call of the compiler."""
    log, compiler = tmp_path / "log", tmp_path / "c++"
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(log)))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return log


@pytest.mark.parametrize(("machine", "variants"), [("aarch64", 1), ("x86_64", 3)])
def test_another_machine_gets_its_own_instruction_sets_and_a_library(
    machine: str, variants: int, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "kernels.so"
    monkeypatch.setattr(sys, "argv", ["compile", "--machine", machine, "--output", str(output)])
    kernels.main()
    *compiled, linked = commands.read_text().splitlines()
    assert sum("kernels.cpp" in command for command in compiled) == variants
    assert any("-mavx" in command for command in compiled) == (machine == "x86_64")
    assert "-shared" in linked
    assert output.read_text() == "compiled"


def test_the_engine_of_this_machine_is_not_replaced_by_another_machines(
    commands: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compile", "--machine", "aarch64"])
    with pytest.raises(SystemExit):
        kernels.main()
    assert "--machine: expected --output too, found none" in capsys.readouterr().err
    assert not commands.exists()
