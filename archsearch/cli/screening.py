"""Commands that answer before anything is trained."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from archsearch.cli.app import SpacePath, app


@app.command()
def validate(space: SpacePath) -> None:
    """Check every line of a search space without training anything."""
    from archsearch.covering import decisions
    from archsearch.loading import load_space

    loaded = load_space(space)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{space}: legal, {len(decisions(loaded))} decisions")


@app.command()
def show(
    source: Annotated[Path, typer.Argument(help="What to draw.", metavar="SPEC.yaml|STUDY|SPACE")],
    view: Annotated[
        Literal["tree", "html", "mermaid", "dot"], typer.Option("--as", help="Of a space a tree.")
    ] = "tree",
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
) -> None:
    """Draw an architecture, a study's best one, or a space with all its decisions."""
    from archsearch.showing import show as draw

    draw(source, view, out)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A space, a spec or a study.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the kind.")],
) -> None:
    """Tell in words what differs; exit code 0 if nothing does, 1 if something, 2 for mistakes."""
    from archsearch.comparing import print_differences

    if not print_differences(first, second):
        raise typer.Exit(1)


@app.command()
def cost(
    spec: Annotated[Path, typer.Argument(help="An architecture.", metavar="SPEC.yaml")],
    batch: Annotated[int, typer.Option(min=1)] = 1,
    seq_len: Annotated[int, typer.Option(min=1)] = 256,
    vocab: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Trace what an architecture costs before it is trained."""
    from dataclasses import asdict

    from archsearch.costs import cost as trace
    from archsearch.loading import load_spec

    for name, value in asdict(
        trace(load_spec(spec), batch=batch, seq_len=seq_len, vocab=vocab)
    ).items():
        print(f"{name:<16}{value:>16,}")


@app.command()
def reference(
    name: Annotated[
        str | None, typer.Argument(help="Of the architecture; none lists them.")
    ] = None,
    size: Annotated[str, typer.Option(help="tiny, small, medium or large.")] = "tiny",
) -> None:
    """Print a published architecture as a spec: a start for one's own, or a baseline."""
    from archsearch import baselines
    from archsearch.errors import UserError

    if name is None:
        for known, design in baselines.DESIGNS.items():
            print(f"{known:<20}{design.source}")
        return
    try:
        spec = baselines.reference(name, size=size)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from None
    print(f"# {baselines.DESIGNS[name].source}\n{spec.to_yaml(name)}", end="")


@app.command()
def blocks(
    name: Annotated[str | None, typer.Argument(help="A block.", metavar="NAME")] = None,
) -> None:
    """List every block with its costs and options; or show one, with YAML that uses it."""
    from archsearch import listing

    listing.print_one(name) if name else listing.print_all()


@app.command()
def check(
    block: Annotated[str, typer.Argument(help="A block of yours.", metavar="FILE.py:CLASS")],
) -> None:
    """Run the laws of blocks on yours; of a law that fails, the smallest case is shown."""
    from archsearch.checking import print_verdicts

    if not print_verdicts(block):
        raise typer.Exit(1)
