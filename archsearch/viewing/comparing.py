"""`archsearch diff`: two spaces or two architectures, told in lines."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from archsearch.errors import UserError
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.viewing.differences import Change
from archsearch.viewing.opening import opened
from archsearch.viewing.space_differences import space_changes
from archsearch.viewing.spec_differences import costs, spec_changes

COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def print_differences(first: Path, second: Path) -> bool:
    """Prints what differs; whether the two are equal.

    Spaces are equal where the same is searched in the same way, architectures where they are the
    same however written.

    Raises:
        UserError: a space and an architecture, or something is wrong with one of them.
    """
    a, b = opened(first).what, opened(second).what
    out = Console(highlight=False, soft_wrap=True)
    if isinstance(a, Space) and isinstance(b, Space):
        changes = space_changes(a, b)
        _print(out, changes or "no difference")
        return not changes
    if isinstance(a, ModelSpec) and isinstance(b, ModelSpec):
        changes = list(spec_changes(a, b))
        equal = a.hash() == b.hash()
        if equal:
            written = ", written differently" if changes else ""
            _print(out, f"the same architecture, hash {a.hash()}{written}")
        _print(out, changes)
        for name, told in () if equal else costs(a, b):
            _print(out, f"{name}: {told}")
        return equal
    space, spec = (first, second) if isinstance(a, Space) else (second, first)
    raise UserError(
        f"{space} is a space, {spec} an architecture; compare two of a kind (`archsearch sample` "
        "draws an architecture from a space)"
    )


def _print(out: Console, what: str | list[Change]) -> None:
    if isinstance(what, str):
        out.print(Text(what))
        return
    for change in what:
        line = Text.assemble((change.sign, COLOURS[change.sign]), " ", (change.path, "bold"))
        out.print(line.append(f"  {change.text}"))
