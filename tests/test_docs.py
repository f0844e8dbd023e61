"""README and documentation: their Python runs, their commands parse, their flags exist, the site builds."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest

from contraprune import cli
from contraprune.config import DataConfig
from contraprune.export import ExportConfig, run_export
from contraprune.structure import ARCHITECTURES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Flags of other programs, and of other pruners in docs/migration.md.
FOREIGN = {"editable", "constraint", "final_lambda", "mask_scores_learning_rate", "initial_warmup", "final_warmup",
           "attention_pruning_method", "sparsity_epsilon", "target_sparsity", "nnodes", "multi_gpu",
           "num_processes"}  # fmt: skip


def blocks(language):
    return [
        pytest.param(page, text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (found, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if found == language
    ]


def commands(text):
    """The contraprune commands of a shell block, as lists of arguments."""
    whole = text.replace("\\\n", " ")
    for line in whole.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "contraprune":
            yield [word for word in words[1:] if word != "..."]


SHELL = [
    pytest.param(arguments, id=f"{block.id}-{number}")
    for language in ("", "bash", "shell")
    for block in blocks(language)
    for number, arguments in enumerate(commands(block.values[1]))
]


def test_there_are_commands():
    names = {param.values[0][0] for param in SHELL}
    assert names == set(cli._COMMANDS)


@pytest.mark.parametrize("arguments", SHELL)
def test_a_command_that_is_shown_is_one(arguments, monkeypatch):
    """Parsed by the command's own parser into checked settings; what the command would do is not done."""
    real, parsed = cli.parse, []

    class DoneError(Exception):
        pass

    def parse(command, classes, given, **positional):
        parsed.append(real(command, classes, given, **positional))
        raise DoneError

    monkeypatch.setattr(cli, "parse", parse)
    monkeypatch.chdir(ROOT)  # recipes are named from there
    with pytest.raises(DoneError):
        cli._COMMANDS[arguments[0]][0](arguments[1:])
    assert parsed


@pytest.fixture(scope="module")
def parsers():
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    pytest.importorskip("mkdocs")
    import cli_reference  # noqa: PLC0415 - is no module of the package

    yield cli_reference
    sys.path.pop(0)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option.lstrip("-") for action in parser._actions for option in action.option_strings}


def test_every_flag_that_is_named_exists(parsers):
    known = set().union(*(options_of(parser) for _, _, parser in parsers.parsers()))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)\b(?!-)", page.read_text(encoding="utf-8")))
        assert named <= known | FOREIGN, f"{page.name}: {sorted(named - known - FOREIGN)}"


def test_the_reference_has_every_command_and_every_listed_flag(parsers):
    page = parsers.reference()
    for name, _, parser in parsers.parsers():
        section = page.split(f"## contraprune {name}\n")[1].split("\n## ")[0]
        listed = [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest not in ("help", "config")]
        for action in listed:
            if action.option_strings and not action.option_strings[0].startswith("--no_"):
                assert f"| `{action.option_strings[0]}` |" in section
    assert "| `--density` |" in page.split("## contraprune prune\n")[1]


# Blocks that need what a small run cannot give, and where they are run instead.
ELSEWHERE = {
    ("add-a-criterion.md", ""): "tests/criteria/test_adding_one.py runs it",
    ("tasks.md", ""): "tests/tasks/test_embedding.py loads a pruned sentence encoder",
    ("README.md", "import onnxruntime"): "tests/export/test_graphs.py runs it",
    ("deployment.md", "import onnxruntime"): "tests/export/test_graphs.py runs it",
    ("deployment.md", "import openvino"): "tests/export/test_graphs.py runs it",
}


@pytest.fixture(scope="module")
def results(runs, tiny, tmp_path_factory):
    """A directory with the results that the documentation speaks of."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "runs").mkdir()
    for name, run in {"teacher": runs.dense, "pruned": runs.sparse, "slim": runs.slim}.items():
        (folder / "runs" / name).symlink_to(run)
    run_export(str(runs.sparse), DataConfig(), ExportConfig(format="sparse", output_dir=str(folder / "exported")))
    (folder / "bert-base-uncased").symlink_to(tiny / "pretrained")
    rows = [f'{{"text": "a {word} film", "label": "{label}"}}\n'
            for word, label in (("good", "positive"), ("bad", "negative")) for _ in range(8)]  # fmt: skip
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_that_is_shown_runs(page, text, results, monkeypatch):
    for (name, part), reason in ELSEWHERE.items():
        if name == page.name and part in text:
            pytest.skip(reason)
    monkeypatch.chdir(results)
    monkeypatch.setenv("XDG_CACHE_HOME", str(results / "cache"))
    before = dict(ARCHITECTURES)
    text = text.replace('output_dir="runs/pruned"', 'output_dir="runs/new"')  # runs/pruned is there already
    try:
        exec(compile(text, page.name, "exec"), {"__name__": page.stem})
    finally:
        ARCHITECTURES.clear()
        ARCHITECTURES.update(before)


def test_pages_are_in_the_navigation_and_links_lead_somewhere():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists() or target == "cli.md", f"{page.name}: {target}"
