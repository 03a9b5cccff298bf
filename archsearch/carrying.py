"""A file of blocks from elsewhere, made at home in an exported package.

    from archsearch.blocks import Mixer, State      ->      from .block import Mixer, State
    from archsearch.kernels import scan             ->      from ..kernels.scan import scan

Everything else in the file stays as it is. It may import torch and the standard library besides,
as an exported model needs nothing else.
"""

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from archsearch.errors import UserError
from archsearch.plugins import source_of

DOTS = {"archsearch.blocks": ".", "archsearch.kernels": "..kernels."}


def carried(cls: type) -> str:
    """The text of the file of a class, its imports of ours made relative.

    Raises:
        UserError: it imports what an exported package cannot have.
    """
    name, text = source_of(cls)
    lines = text.splitlines(keepends=True)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda n: -n.lineno):  # from the end: earlier lines stay in place
        if isinstance(node, ast.ImportFrom) and not node.level and _package(node):
            indent = " " * node.col_offset
            new = [f"{indent}{statement}\n" for statement in _relative(node, name)]
            lines[node.lineno - 1 : node.end_lineno] = new
        else:
            _require_there(node, name)
    return "".join(lines)


def imports_of_ours(text: str) -> Iterator[tuple[str, str]]:
    """The folders and files of ours that such a file imports from: ("kernels", "scan")."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and not node.level and (package := _package(node)):
            inner = (node.module or "").removeprefix(package).lstrip(".")
            homes = {} if inner else _homes(package)
            files = [inner.partition(".")[0]] if inner else [homes.get(a.name) for a in node.names]
            yield from ((package.rpartition(".")[2], file) for file in files if file)


def _package(node: ast.ImportFrom) -> str | None:
    module = node.module or ""
    return next((p for p in DOTS if module == p or module.startswith(p + ".")), None)


def _relative(node: ast.ImportFrom, file: str) -> list[str]:
    """The statements that import the same names by relative imports from single files."""
    package = _package(node)
    assert package is not None
    inner = (node.module or "").removeprefix(package).lstrip(".")
    homes = {} if inner else _homes(package)
    found: dict[str, list[str]] = {}
    for alias in node.names:
        home = inner or homes.get(alias.name)
        if home is None:
            raise UserError(
                f"{file}:{node.lineno}: cannot be exported: {package} has no name {alias.name!r} of"
                f" its own; import it from its file, from {package}.FILE import {alias.name}"
            )
        found.setdefault(home, []).append(ast.unparse(alias))
    return [f"from {DOTS[package]}{home} import {', '.join(n)}" for home, n in found.items()]


def _homes(package: str) -> dict[str, str]:
    """The public names of a package and the file of each, as its __init__ imports them."""
    path = Path(str(import_module(package).__file__))
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module]
    return {alias.name: str(n.module) for n in imports for alias in n.names}


def _require_there(node: ast.Import | ast.ImportFrom, file: str) -> None:
    """Refuses an import that a machine with nothing but torch cannot make."""
    relative = isinstance(node, ast.ImportFrom) and node.level
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    names = [module] if module else [alias.name for alias in node.names]
    for name in names:
        root = name.partition(".")[0]
        if relative or (root != "torch" and root not in sys.stdlib_module_names):
            raise UserError(
                f"{file}:{node.lineno}: cannot be exported: {ast.unparse(node)!r}; a block may "
                "import torch, the standard library, and names from archsearch.blocks and "
                "archsearch.kernels by `from ... import ...`"
            )
