"""Makes the page of the command line from the parsers themselves, while the site is built."""

import argparse
from collections.abc import Iterator
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

from contraprune import cli


class _Found(Exception):  # noqa: N818 - not an error
    """Carries the parser out of a command that was about to parse its flags."""


def parsers() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, summary and parser of every command."""
    for name, (command, summary) in cli._COMMANDS.items():
        with mock.patch.object(cli, "parse", _stop):
            try:
                command([])
            except _Found as found:
                yield name, summary, found.args[0]


def _stop(command: str, classes: Any, arguments: list[str], **positional: Any) -> None:
    raise _Found(cli._parser(command, classes, **positional))


def reference() -> str:
    """The page, as Markdown."""
    parts = [
        "# Command line\n",
        "Made from the commands' own parsers. `--config FILE.yaml` gives any option from a file.\n",
    ]
    for name, summary, parser in parsers():
        parts.append(f"## contraprune {name}\n\n{summary}\n\n```text\n{parser.usage}\n```\n")
        for group in parser._action_groups:
            rows = [_row(action, parser) for action in group._group_actions if _shown(action)]
            if rows:
                title = "" if group.title in ("positional arguments", "options") else f"**{group.title}**\n\n"
                parts.append(f"{title}| option | default | |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and action.dest not in ("help", "config") and not _negation(action)


def _negation(action: argparse.Action) -> bool:
    return any(option.startswith("--no_") for option in action.option_strings)


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    name = action.option_strings[0] if action.option_strings else str(action.metavar)
    default = getattr(action.default, "value", action.default)
    shown = "required" if action.required else "" if default in (None, argparse.SUPPRESS) else f"`{default}`"
    help_text = (action.help or "").replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
    return f"| `{name}` | {shown} | {help_text} |"


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs when it has collected the pages."""
    files.append(File.generated(config, "cli.md", content=reference()))
    return files
