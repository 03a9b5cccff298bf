"""The command line. Heavy libraries are imported inside the commands, so that --help is instant.

Exit codes: 0 done, 1 no feasible candidate, 2 a mistake in what was asked, 130 stopped by Ctrl-C.
"""

from archsearch.cli import running, screening
from archsearch.cli.app import app, fail

__all__ = ["app", "main", "running", "screening"]


def main() -> None:
    """The `archsearch` command."""
    from archsearch.errors import UserError

    try:
        app()
    except UserError as error:
        fail(error)
