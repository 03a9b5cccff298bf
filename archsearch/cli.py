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
    from archsearch.progress import watching
    from archsearch.report import write_report
    from archsearch.space import load_space

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
    from archsearch.space import load_space

    loaded = load_space(space)
    decisions = {name for draw in loaded.covering_draws() for name in draw.decisions}
    print(f"{space}: legal, {len(decisions)} decisions")


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
    from archsearch.spec import load_spec

    for name, value in asdict(
        trace(load_spec(spec), batch=batch, seq_len=seq_len, vocab=vocab)
    ).items():
        print(f"{name:<16}{value:>16,}")


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
