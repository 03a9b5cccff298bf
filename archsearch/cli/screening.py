"""Commands that answer before anything is trained."""

import sys
from pathlib import Path
from typing import Annotated

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
def cost(
    spec: Annotated[Path, typer.Argument(help="An architecture.", metavar="SPEC.yaml")],
    batch: Annotated[int, typer.Option(min=1)] = 1,
    seq_len: Annotated[int, typer.Option(min=1)] = 256,
    vocab: Annotated[int, typer.Option(min=1)] = 256,
    measure: Annotated[bool, typer.Option("--measure", help="Time it as well.")] = False,
    device: Annotated[str, typer.Option(help="Where it is timed.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Plain numbers, for programs.")] = False,
) -> None:
    """Tell what an architecture costs before it is trained; nothing is allocated."""
    from archsearch import pricing
    from archsearch.loading import load_spec
    from archsearch.preflight import require_device

    if measure:
        require_device(device)
    prices = pricing.price(load_spec(spec), batch, seq_len, vocab, device if measure else None)
    print(prices.json() if as_json else prices.table())


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
