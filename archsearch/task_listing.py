"""What tasks there are: each with what a model of it reads and gives, its options, its floors."""

import inspect
import json
import sys
from typing import cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from archsearch import reading
from archsearch.errors import UserError
from archsearch.listing import console, kind_of
from archsearch.presets import (
    KINDS,
    SEEDS,
    TRIALS,
    Kind,
    expected,
    minutes,
    presets,
    space,
    spread,
)
from archsearch.reading import nearest
from archsearch.tasks import TASKS, Task, TaskError, task


def print_all() -> None:
    """The list, with what its columns say."""
    out = console()
    rows = Table(expand=True, box=SIMPLE_HEAD)
    rows.add_column("name", no_wrap=True)
    rows.add_column("what it asks, and its options", ratio=1)
    rows.add_column("models")
    for name, cls in sorted(TASKS.items()):
        first = (inspect.getdoc(cls) or "").partition("\n")[0]
        options = "  ".join(
            key if cls.model_fields[key].is_required() else f"{key}={_default(cls, key)}"
            for key in _options(cls)
        )
        kinds = "causal" if cls.causal else "all"
        rows.add_row(
            f"[bold]{name}[/bold]", f"{escape(first)}\n[dim]{escape(options)}[/dim]", kinds
        )
    out.print(rows)
    out.print(
        "models: a causal one is told its answers by looking ahead; where it says all, blocks that "
        "see the future may be tried, too. `archsearch tasks NAME` shows one whole.",
        style="dim",
    )


def print_one(name: str) -> None:
    """Definition, source, ends, options, floors and YAML of a task."""
    if name not in TASKS:
        raise UserError(f"no task {name!r}; {nearest(name, [*TASKS])}")
    cls, out = TASKS[name], console()
    out.print(f"[bold]{name}[/bold]  {cls.__module__}.{cls.__qualname__}\n")
    for text in (inspect.getdoc(sys.modules[cls.__module__]), inspect.getdoc(cls)):
        out.print(escape(text or ""), "\n")
    rows = Table(expand=True, box=SIMPLE_HEAD)
    for column, ratio in (("option", None), ("type", 2), ("default", None), ("", 3)):
        rows.add_column(column, ratio=ratio, no_wrap=ratio is None)
    for key in _options(cls):
        field = cls.model_fields[key]
        kind = escape(kind_of(field.annotation))
        rows.add_row(
            f"[bold]{key}[/bold]", kind, _default(cls, key), escape(field.description or "")
        )
    out.print(rows)
    required = [key for key in _options(cls) if cls.model_fields[key].is_required()]
    if required:
        out.print(
            f"[dim]Its floors are not known here: they depend on {', '.join(required)}.[/dim]\n"
        )
    else:
        _floors(out, task(name))
    _expected(out, name)
    snippet = reading.write({"tasks": [{"type": name} | dict.fromkeys(required, "...")]})
    out.print(Syntax(snippet, "yaml", theme="ansi_dark", background_color="default"))


def print_space(name: str | None, kind: str) -> None:
    """The space over a task's preset, as a file."""
    if name is None or kind not in KINDS:
        raise UserError(f"--preset {kind}: name a task before it, and one of {', '.join(KINDS)}")
    print(reading.write(space(name, cast(Kind, kind))), end="")


def _expected(out: Console, name: str) -> None:
    """What reference architectures reach at the task's presets."""
    for kind in presets().get(name, {}):
        found = expected(name, kind)
        if found is None:
            out.print(f"preset {kind}: not measured yet", style="dim", highlight=False)
            continue
        scores = ", ".join(f"{ref} {spread(run['scores'])}" for ref, run in found["runs"].items())
        out.print(
            f"preset {kind}: scores {scores} over {SEEDS} seeds on val ({found['where']}); "
            f"{TRIALS} candidates take {minutes(found):.1f} minutes",
            highlight=False,
        )


def _floors(out: Console, asked: Task) -> None:
    """What rules reach with default options, or why that is not known here."""
    try:
        asked.prepare()
    except TaskError as error:
        out.print(f"[dim]Its floors are not known here: {escape(str(error))}[/dim]\n")
        return
    read, given = asked.ends.shapes
    out.print(f"A model reads {read}, and gives {given}. On val, without a network:\n")
    metrics = dict.fromkeys(name for of in asked.floors().values() for name in of)
    rows = Table(box=SIMPLE_HEAD)
    rows.add_column("rule")
    for metric in metrics:
        rows.add_column(metric.replace("_", " "), justify="right")
    for rule, of in asked.floors().items():
        rows.add_row(escape(rule), *(f"{of[m]:.3f}" if m in of else "" for m in metrics))
    out.print(rows)


def _options(cls: type[Task]) -> list[str]:
    return [name for name in cls.model_fields if name != "type"]


def _default(cls: type[Task], name: str) -> str:
    if cls.model_fields[name].is_required():
        return "required"
    value = cls.model_fields[name].get_default(call_default_factory=True)
    return value if isinstance(value, str) else json.dumps(value)
