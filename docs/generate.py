"""The reference pages, written from the code when the site is built: methods, config, commands, Python, examples."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import demp
from demp import methods, recipes
from demp.cli import commands
from demp.pruner.options import all_meanings
from demp.train import TrainConfig
from demp.train.choices import SinkName

EXAMPLES = Path(__file__).parent.parent / "examples"
WIDTH = "84"
"""Columns of the help texts."""


def write(folder: Path) -> None:
    """All reference pages; files that are as they should be keep their time stamp."""
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        text, file = page(), folder / f"{name}.md"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def knobs(kind: type, above: type = object) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of the fields of a dataclass that ``above`` does not have."""
    docs = all_meanings(kind)
    inherited = {entry.name for entry in dataclasses.fields(above)} if dataclasses.is_dataclass(above) else set()
    for entry in dataclasses.fields(kind):
        if entry.name not in inherited:
            yield entry.name, _type(entry.type), _default(entry), docs[entry.name]


def table(kind: type, above: type = object) -> str:
    """The knobs as a Markdown table."""
    rows = [
        f"| `{name}` | {_code(kind)} | {_code(default)} | {_cell(words)} |"
        for name, kind, default, words in knobs(kind, above)
    ]
    return "\n".join(["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows])


def _type(kind: Any) -> str:
    return (
        kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")
    )


def _default(entry: dataclasses.Field) -> str:
    if entry.default is not dataclasses.MISSING:
        return repr(entry.default)
    if entry.default_factory is not dataclasses.MISSING and not dataclasses.is_dataclass(entry.default_factory):
        return repr(entry.default_factory())
    return ""


def _words(text: str) -> str:
    """Prose of a docstring on one line; outside of literals nothing is markup."""
    parts = re.sub(r"\s+", " ", text).replace("``", "`").split("`")
    return "`".join(part if i % 2 else re.sub(r"([*_<\[])", r"\\\1", part) for i, part in enumerate(parts))


def _cell(text: str) -> str:
    """Prose in a table, whose bars end cells."""
    return _words(text).replace("|", r"\|")


def _code(text: str) -> str:
    """A literal in a table."""
    return f"`{text}`".replace("|", r"\|") if text else ""


def prose(text: str | None) -> str:
    """A docstring as Markdown: a block with indented lines is a formula or a list and stays as it is written."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        lines = block.splitlines()
        if any(line.startswith(" ") or re.search(r"\S {3,}\S", line) for line in lines):
            blocks.append(f"```text\n{textwrap.dedent(block).replace('``', '')}\n```")
        else:
            blocks.append(_words(block))
    return "\n\n".join(blocks)


def methods_page() -> str:
    """Every registered method with every knob."""
    common = methods.MethodConfig
    parts = [
        "# Methods",
        "Written from the registry and the docstrings. `demp.methods.create(NAME, model, optimizer, ...)` attaches any "
        "of them, `demp train --method NAME` trains with it, `--set method.options.FIELD=VALUE` sets a knob. Two names "
        "with a plus, such as `demp+rigl`, are one method that removes neurons and masks weights.",
        "| name | what it does | source |\n| --- | --- | --- |\n"
        + "\n".join(
            f"| [`{name}`](#method-{name}) | {_cell(kind.summary)} | {_cell(kind.reference)} |"
            for name, kind in methods.registry().items()
        ),
        "## Knobs of every method",
        table(common),
    ]
    for name, kind in methods.registry().items():
        module = sys.modules[kind.__module__]
        parts += [f"(method-{name})=\n## {name}", prose(module.__doc__), table(kind.Config, common)]
    return _page(parts)


def config_page() -> str:
    """Every field of a training config, and the recipes."""
    parts = [
        "# Training config",
        "Written from the docstrings. `config.toml` in a run folder has these fields, `--set FIELD=VALUE` sets one, "
        "`demp train --config FILE` reads some from a file. Sinks: "
        + ", ".join(f"`{name}`" for name in get_args(SinkName))
        + ".",
        "## The run",
        table(TrainConfig),
    ]
    for name, kind in _parts(TrainConfig):
        parts += [f"## `{name}`", prose(kind.__doc__), table(kind)]
    listed = "\n".join(f"| `{name}` | {_cell(recipes.summary(name))} |" for name in recipes.names())
    parts += ["## Recipes", f"| recipe | what it is |\n| --- | --- |\n{listed}"]
    return _page(parts)


def _parts(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(entry.type) and isinstance(entry.type, type):
            yield f"{prefix}{entry.name}", entry.type
            yield from _parts(entry.type, f"{prefix}{entry.name}.")


def help_of(*arguments: str) -> str:
    """What ``demp ... --help`` prints on a terminal without colours."""
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        commands.parse([*arguments, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip()


def cli_page() -> str:
    """The help of every command."""
    parts = ["# Command line", commands_exit_codes(), f"```text\n{help_of()}\n```"]
    for name in sorted(commands.COMMANDS):
        parts += [f"## demp {name}", f"```text\n{help_of(name)}\n```"]
    return _page(parts)


def commands_exit_codes() -> str:
    """What the package of commands says about exit codes."""
    return prose(sys.modules["demp.cli"].__doc__)


def python_page() -> str:
    """The public names, rendered by autodoc."""
    parts = [
        "# Python",
        "`import demp`, and these are the names. Everything else in the package is free to change.",
    ]
    for name in demp.__all__:
        value = getattr(demp, name)
        home = getattr(value, "__module__", value.__name__)
        kind = "class" if isinstance(value, type) else "module" if inspect.ismodule(value) else "function"
        target = value.__name__ if kind == "module" else f"{home}.{value.__name__}"
        members = "" if kind == "function" or (kind == "class" and issubclass(value, Exception)) else "\n   :members:"
        parts += [f"## demp.{name}", f"```{{eval-rst}}\n.. auto{kind}:: {target}{members}\n```"]
    return _page(parts)


def examples_page() -> str:
    """The files of examples/, each in full."""
    parts = ["# Examples", "Every file runs in the tests, and once more from its checkpoint."]
    for file in sorted(EXAMPLES.glob("*.py")):
        parts += [
            f"(example-{file.stem})=\n## {file.name}",
            f"```python\n{file.read_text(encoding='utf-8').strip()}\n```",
        ]
    return _page(parts)


def _page(parts: list[str]) -> str:
    return "\n\n".join(parts) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "methods": methods_page,
    "config": config_page,
    "cli": cli_page,
    "python": python_page,
    "examples": examples_page,
}
