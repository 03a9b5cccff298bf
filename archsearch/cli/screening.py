"""Commands that answer before anything is trained."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from archsearch.cli.app import SpacePath, app


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A space or a spec.", metavar="SPACE|SPEC.yaml")],
) -> None:
    """Check every line of a search space, or of a spec, without training anything."""
    from archsearch.covering import decisions
    from archsearch.space import Space
    from archsearch.viewing.opening import opened

    loaded = opened(file).what
    if not isinstance(loaded, Space):
        print(f"{file}: legal, one architecture: {loaded.summary()}")
        return
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{file}: legal, {len(decisions(loaded))} decisions")


@app.command()
def show(
    source: Annotated[Path, typer.Argument(help="What to draw.", metavar="SPEC.yaml|STUDY|SPACE")],
    view: Annotated[
        Literal["tree", "html", "mermaid", "dot"], typer.Option("--as", help="Of a space a tree.")
    ] = "tree",
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
) -> None:
    """Draw an architecture, a study's best one, or a space with all its decisions."""
    from archsearch.viewing.showing import show as draw

    draw(source, view, out)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A space, a spec or a study.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another of the kind.")],
) -> None:
    """Tell in words what differs; exit code 0 if nothing does, 1 if something, 2 for mistakes."""
    from archsearch.viewing.comparing import print_differences

    if not print_differences(first, second):
        raise typer.Exit(1)


@app.command()
def cost(
    source: Annotated[Path, typer.Argument(help="What it is of.", metavar="SPEC.yaml|SPACE")],
    batch: Annotated[int, typer.Option(min=1)] = 1,
    seq_len: Annotated[int, typer.Option(min=1)] = 256,
    vocab: Annotated[int, typer.Option(min=1)] = 256,
    measure: Annotated[bool, typer.Option("--measure", help="Time it as well.")] = False,
    device: Annotated[str, typer.Option(help="Where it is timed.")] = "cpu",
    workers: Annotated[int | None, typer.Option(min=1, help="Of a study of a space.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Plain numbers, for programs.")] = False,
) -> None:
    """Tell what an architecture costs before it is trained, or what a study of a space takes.

    Of an architecture nothing is allocated; of a space a few candidates are timed for some steps.
    """
    from archsearch import estimate, pricing
    from archsearch.engines import Local
    from archsearch.preflight import require_device
    from archsearch.space import Space
    from archsearch.viewing.opening import opened

    what = opened(source).what
    if measure or isinstance(what, Space):
        require_device(device)
    if isinstance(what, Space):
        size = Local(device, workers).size
        prices = estimate.estimate(what, size, device)
    else:
        prices = pricing.price(what, batch, seq_len, vocab, device if measure else None)
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
def tasks(
    name: Annotated[str | None, typer.Argument(help="A task.", metavar="NAME")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Print a space over its preset: cpu or gpu.")
    ] = None,
) -> None:
    """List every task with its options; or show one, with its definition, source and floors."""
    from archsearch import task_listing

    if preset is not None:
        task_listing.print_space(name, preset)
    else:
        task_listing.print_one(name) if name else task_listing.print_all()


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Where to write it.", metavar="FILE")] = None,
    blocks: Annotated[
        list[Path] | None, typer.Option(help="Blocks of yours to know.", metavar="FILE.py")
    ] = None,
) -> None:
    """Print the JSON Schema of spaces and specs, by which an editor completes and checks them."""
    from archsearch import plugins
    from archsearch.errors import UserError
    from archsearch.schema import text

    written = text([plugins.load_file(path).path.name for path in blocks or ()])
    if out is None:
        print(written, end="")
        return
    try:
        out.write_text(written, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); check the path") from None


@app.command()
def check(
    block: Annotated[str, typer.Argument(help="A block of yours.", metavar="FILE.py:CLASS")],
) -> None:
    """Run the laws of blocks on yours; of a law that fails, the smallest case is shown."""
    from archsearch.checking import print_verdicts

    if not print_verdicts(block):
        raise typer.Exit(1)


@app.command()
def count(
    space: SpacePath,
    draws: Annotated[int, typer.Option(min=1, help="Random models screened.")] = 200,
) -> None:
    """Tell how many models a space holds, and how many of them fit its budgets."""
    from archsearch import census
    from archsearch.loading import load_space

    loaded = load_space(space)
    number, continuous = census.size(loaded)
    ranges = f"{len(continuous)} range{'s' * (len(continuous) > 1)}"
    beside = f", beside {ranges} without a step" if continuous else ""
    print(f"{space}: {number:,} draws{beside}")
    share = census.estimate(loaded, draws)
    low, high = share.interval
    print(f"of {draws} random draws")
    print(f"  legal          {share.legal:>6}   {len(share.hashes)} architectures among them")
    print(f"  within budget  {share.within:>6}   {low:.0%} to {high:.0%} of the space (95 %)")
    for name, number in share.illegal_by.most_common():
        print(f"  illegal by     {number:>6}   {name}")
    for name, number in share.over_by.most_common():
        print(f"  over budget    {number:>6}   {name}")


@app.command()
def explain(
    space: SpacePath,
    path: Annotated[
        str | None, typer.Argument(help="Of a decision or a value; none lists all decisions.")
    ] = None,
) -> None:
    """Tell what a decision is, where it stands, when it is made and what draws make of it."""
    from archsearch import explaining
    from archsearch.loading import load_space

    loaded = load_space(space)
    if path is None:
        for name, text, place in explaining.table(loaded):
            print(f"{name}\n    {text}    {place}")
        return
    for line in explaining.explain(loaded, path):
        print(line)


@app.command()
def sample(
    space: SpacePath,
    number: Annotated[int, typer.Option("-n", min=1, help="Models drawn.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; the next ones follow.")] = 0,
    show: Annotated[bool, typer.Option("--show", help="Each as a tree.")] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for their spec files.")] = None,
) -> None:
    """Draw legal models of a space: what each is, what it costs, and its spec file with --out."""
    from archsearch.durable import write_atomic
    from archsearch.loading import load_space
    from archsearch.viewing.showing import printed
    from archsearch.viewing.spec_tree import spec_tree

    loaded = load_space(space)
    for i in range(seed, seed + number):
        spec = loaded.sample(i)
        found = loaded.file.budgets.screen(spec, loaded.file.ends)
        told = ", ".join(f"{name} {value:,}" for name, value in found.costs.items())
        over = f"; over budget: {found.excess.budget}" if found.excess else ""
        print(f"seed {i}  {spec.hash()}  {spec.summary()}\n    {told}{over}")
        if show:
            printed(spec_tree(spec, f"seed {i}"), sys.stdout)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / f"{loaded.name}-{i}.yaml", spec.to_yaml(f"{loaded.name}-{i}"))
