"""The command line. Heavy libraries are imported inside the commands, so that --help is instant.

Exit codes: 0 done, 1 no feasible candidate, 2 a mistake in what was asked, 130 stopped by Ctrl-C.
"""

import signal
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

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

StudyPath = Annotated[Path, typer.Argument(help="A study's folder.", metavar="STUDY")]
SpacePath = Annotated[Path, typer.Argument(help="A search space.", metavar="SPACE.yaml")]


@app.command()
def study(
    space: SpacePath,
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates to train.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder.")] = None,
    storage: Annotated[str | None, typer.Option(help="An Optuna storage URL.")] = None,
    device: Annotated[str, typer.Option(help="Where models are trained.")] = "cpu",
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the space's own.")] = None,
) -> None:
    """Run a study, or go on with one that was stopped: the same command resumes."""
    from archsearch import search
    from archsearch.errors import NoFeasibleCandidate
    from archsearch.loading import load_space
    from archsearch.progress import watching
    from archsearch.report import write_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    folder = out or Path("studies") / "NAME"
    try:
        loaded = load_space(space)
        folder = out or Path("studies") / loaded.name
        with watching() as watch:
            result = search.study(
                loaded, trials=trials, workers=workers, out=folder, storage=storage,
                device=device, seed=seed, watch=watch,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"\nstopped; what finished is in {folder}, the same command resumes", file=sys.stderr)
        raise typer.Exit(130) from None
    page = write_report(result.folder)
    counts = result.counts
    print(f"{counts['trained']} trained of {counts['proposed']} proposed: {result.folder}")
    if result.exhausted:
        print("the space holds no further candidate within the budgets")
    print(f"report  {page}")
    if (best := result.best_entry) is None:
        fail(NoFeasibleCandidate(f"no candidate was trained; failed: {counts['failed_by']}"))
    print(f"best  {best.name}  loss {best.loss:.3f}  {best.summary}")


@app.command()
def report(study: StudyPath) -> None:
    """Write a study's report: one HTML file that needs no network."""
    from archsearch.report import write_report

    print(write_report(study))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A study or a spec file.", metavar="STUDY|SPEC")],
    out: Annotated[Path, typer.Option(help="The new folder, a Python package.")],
) -> None:
    """Write the best architecture as a package that needs only PyTorch."""
    from archsearch.export import export as write

    print(write(source, out))


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


@bench.command()
def kernels(
    device: Annotated[str | None, typer.Option(help="A GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32; bfloat16 on a GPU.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="On the CPU.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="An operator; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.json; FILE.md beside it.")] = None,
) -> None:
    """Time every operator beside whatever peer is installed, values checked first."""
    from archsearch.bench import table
    from archsearch.bench.run import Runner, Settings
    from archsearch.errors import UserError

    if out is not None and (out.suffix != ".json" or not out.parent.is_dir()):
        raise UserError(f"--out {out}: must be a .json file in a folder that exists")
    runner = Runner(Settings(device=device, dtype=dtype, threads=threads), only or ())
    console = table.console()
    for line in table.head(runner.bench):
        console.print(line, highlight=False)
    for result in runner.results():
        table.show(console, runner.bench, result)
        if out is not None:
            table.write(runner.bench, out)  # after each: stopping early keeps what is there
    for line in ["", *table.judged(runner.bench)]:
        console.print(line, highlight=False)


def fail(error: Any) -> NoReturn:
    """Prints a user's mistake and leaves with its exit code."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def main() -> None:
    """The `archsearch` command."""
    from archsearch.errors import UserError

    try:
        app()
    except UserError as error:
        fail(error)
