"""Commands that train, measure and write: study, report, export, bench."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from archsearch.cli.app import SpacePath, app, fail

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Place = Literal["local", "ray", "postgresql"]
Form = Literal["package", "hf"]
StudyPath = Annotated[Path, typer.Argument(help="A study's folder.", metavar="STUDY")]


@app.command()
def study(
    space: SpacePath,
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates to train.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    out: Annotated[Path | None, typer.Option(help="The study's folder.")] = None,
    storage: Annotated[str | None, typer.Option(help="An Optuna storage URL.")] = None,
    device: Annotated[str, typer.Option(help="Where models are trained.")] = "cpu",
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the space's own.")] = None,
    engine: Annotated[Place, typer.Option(help="Processes here, a Ray cluster, a crew.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, HOST:PORT.")] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(min=0.01, help="Of a Ray cluster; 1 if not told.")
    ] = None,
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
                device=device, seed=seed, engine=engine, address=address,
                gpus_per_trial=gpus_per_trial, watch=watch,
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
def status(
    study: StudyPath,
    watch: Annotated[bool, typer.Option("--watch", help="Again each second.")] = False,
    plain: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Show how a study stands: what runs, the best so far, what became of every proposal."""
    import json

    from rich.console import Console

    from archsearch.folder import StudyFolder
    from archsearch.progress import follow, render

    folder = StudyFolder(study)
    if watch:
        follow(folder, plain=plain)
        return
    snapshot = folder.read_status()
    if plain:
        print(json.dumps(snapshot, indent=1))
    else:
        Console().print(render(snapshot))


@app.command()
def report(study: StudyPath) -> None:
    """Write a study's report: one HTML file that needs no network."""
    from archsearch.report import write_report

    print(write_report(study))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A study or a spec file.", metavar="STUDY|SPEC")],
    out: Annotated[Path, typer.Option(help="The new folder, a Python package.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Another than the best.")] = None,
    format: Annotated[Form, typer.Option(help="PyTorch alone, or for transformers.")] = "package",
) -> None:
    """Write the best architecture as a folder that needs archsearch no more."""
    from archsearch.export import export as write

    print(write(source, out, trial=trial, format=format))


@app.command()
def generate(
    source: Annotated[Path, typer.Argument(help="A study or a spec file.", metavar="STUDY|SPEC")],
    prompt: Annotated[str, typer.Argument(help="Text, or ids where tokens are no bytes.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Another than the best.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="From those that add up to it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    device: Annotated[str, typer.Option(help="Where it runs.")] = "cpu",
) -> None:
    """Continue a prompt with the best of a study: a quick look at what it learned."""
    from archsearch.generating import generating

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    told, pieces = generating(source, prompt, steps, trial=trial, device=device, **sampling)
    print(told, file=sys.stderr)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


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


@bench.command("tasks")
def presets_of_tasks(
    only: Annotated[list[str] | None, typer.Option(help="A task; may be repeated.")] = None,
    preset: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes, a thread each.")] = 2,
    page: Annotated[Path | None, typer.Option(help="The table, FILE.md.")] = None,
) -> None:
    """Measure what reference architectures reach at the presets of tasks, and keep it."""
    from archsearch import presets
    from archsearch.bench.tasks import keep, measure
    from archsearch.errors import UserError

    if preset not in presets.KINDS:
        raise UserError(f"--preset {preset}: must be one of {', '.join(presets.KINDS)}")
    for name, found in measure(only or [], preset, device, workers):  # type: ignore[arg-type]
        keep(name, preset, found)  # type: ignore[arg-type]
        scores = {ref: run["scores"] for ref, run in found["runs"].items()}
        told = ", ".join(f"{ref} {presets.spread(values)}" for ref, values in scores.items())
        apart, minutes = presets.separation(scores), presets.minutes(found)
        print(f"{name}: {told}; {apart:.1f} apart, {minutes:.1f} min", flush=True)
    if page is not None:
        page.write_text(presets.table(), encoding="utf-8")
