"""`archsearch show`: one architecture in any view, a space as a tree."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.tree import Tree

from archsearch.durable import write_atomic
from archsearch.errors import UserError
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.viewing.drawing import dot, mermaid
from archsearch.viewing.opening import opened
from archsearch.viewing.space_tree import space_tree
from archsearch.viewing.spec_tree import spec_tree

WIDTH = 80
"""Columns of a tree that no terminal shows."""


def show(source: Path, view: str, out: Path | None) -> None:
    """Prints a drawing, or writes it to a file and prints the file's name.

    Raises:
        UserError: there is nothing to draw, it has no such view, or it cannot be written.
    """
    name, what = opened(source)
    if isinstance(what, Space):
        if view != "tree":
            raise UserError(
                f"{source}: a space has no {view}, only a tree; `--as {view}` draws one "
                "architecture, and `archsearch sample` draws one from a space"
            )
        drawing = space_tree(what)
    else:
        drawing = VIEWS[view](what, name)
    if out is None:
        printed(drawing, sys.stdout)
        return
    text = io.StringIO()
    printed(drawing, text)
    try:
        write_atomic(out, text.getvalue())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(out)


def printed(drawing: Tree | str, file: IO[str]) -> None:
    """Writes a drawing, a tree in WIDTH columns where no terminal shows it."""
    if isinstance(drawing, str):
        file.write(drawing)
    else:
        width = None if file.isatty() else WIDTH
        Console(file=file, highlight=False, width=width).print(drawing)


def _html(spec: ModelSpec, name: str) -> str:
    from archsearch.report.sheet import sheet  # plotly is slow to load

    return sheet(spec, name)


VIEWS: dict[str, Callable[[ModelSpec, str], Tree | str]] = {
    "tree": spec_tree,
    "html": _html,
    "mermaid": lambda spec, name: mermaid(spec),
    "dot": lambda spec, name: dot(spec),
}
