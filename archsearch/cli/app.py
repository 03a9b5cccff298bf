"""The application that the commands belong to, and how it fails."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    help="Search for hybrid sequence models: YAML space in, report and standalone module out.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SpacePath = Annotated[Path, typer.Argument(help="A search space.", metavar="SPACE.yaml")]


def fail(error: Any) -> NoReturn:
    """Prints a user's mistake and leaves with its exit code."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)
