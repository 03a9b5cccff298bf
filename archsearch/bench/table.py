"""A run on the terminal, as Markdown and as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from archsearch.bench.claims import verdicts
from archsearch.bench.record import FORWARD, TIMED, TRAINING, Bench, Result, Row

WIDTH = 150  # of the tables where no terminal says its own
HEADS = ["", "ms", "GB/s", "GFLOP/s", "x floor", "x ours"]
MODES = {
    FORWARD: "forward",
    TRAINING: "forward + backward",
    f"{FORWARD} graph": "forward, CUDA graph",
    f"{TRAINING} graph": "forward + backward, CUDA graph",
}


def show(console: Console, bench: Bench, result: Result) -> None:
    """One case, a table for each mode side by side."""
    console.print(f"\n[bold]{title(result)}[/bold]  {floors(bench, result)}")
    for mode in modes(result):
        table = Table(HEADS[0], title=MODES[mode], title_justify="left", box=None)
        for head in HEADS[1:]:
            table.add_column(head, justify="right")
        for row in result.rows:
            if mode in row.times:
                table.add_row(*cells(bench, result, row, mode))
        console.print(table)
    for line in remarks(result):
        console.print(line, highlight=False)


def console() -> Console:
    """The terminal; a wide page where there is none."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


def head(bench: Bench) -> Iterator[str]:
    """Where and how it was measured, and who takes part."""
    s, machine = bench.settings, bench.machine
    where = f"{machine['gpu']}; " if machine["gpu"] else ""
    yield f"{s['date']}, {where}{machine['cpu']}, load {machine['load']} at the start"
    versions = ", ".join(f"{name} {number}" for name, number in bench.versions.items())
    yield f"{versions}, commit {(s['commit'] or 'unknown')[:10]}"
    yield (
        f"{s['dtype']}, {s['threads']} thread(s), {s['clock']}: median of {s['rounds']} rounds in "
        "which all take turns, in brackets the middle three fifths; who has had "
        f"{s['seconds']:g} s leaves earlier"
    )
    yield (
        f"a large copy moves {bench.bandwidth / 1e9:.1f} GB/s in this run; the floor is the least "
        "traffic at that speed: inputs and output once, and backward the inputs, the output's "
        "gradient and the inputs' gradients once. What fits a cache can be below it."
    )
    yield f"checked against the float64 reference before timing, tolerance {s['tolerance']:g}"
    for entrant in bench.entrants:
        name, number = entrant.peer.name, entrant.peer.version()
        yield f"{name}: {entrant.status}{f' ({entrant.peer.package} {number})' if number else ''}"


def title(result: Result) -> str:
    """The operator and its sizes."""
    return f"{result.operator}  {result.sizes}"


def floors(bench: Bench, result: Result) -> str:
    """The two floors and the work."""
    c = result.costs
    return (
        f"floor {bench.floor(c.forward_bytes):.3g} ms forward, {bench.floor(c.training_bytes):.3g} "
        f"with backward; {c.forward_flops / 1e9:.3g} and {c.training_flops / 1e9:.3g} GFLOP"
    )


def modes(result: Result) -> list[str]:
    """The modes that were measured."""
    return [mode for mode in MODES if any(mode in row.times for row in result.rows)]


def cells(bench: Bench, result: Result, row: Row, mode: str) -> list[str]:
    """One contestant's line."""
    m = bench.measure(result, row, mode)
    spread = f"{short(m.low)} to {short(m.high)}" if m.rounds > 1 else "once"
    return [
        row.name,
        f"{short(m.ms)} ({spread})",
        short(m.gb_per_s),
        short(m.gflop_per_s),
        short(m.times_floor),
        short(m.times_ours),
    ]


def short(number: float | None) -> str:
    """Three digits that count, and no exponent: 0.00123, 12.3, 12345."""
    if number is None:
        return ""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def remarks(result: Result) -> Iterator[str]:
    """Who was not timed and why, and other notes."""
    for row in result.rows:
        if row.status != TIMED:
            yield f"{row.name}: {row.status}"
        yield from (f"{row.name}: {note}" for note in row.notes)


def judged(bench: Bench) -> Iterator[str]:
    """Each claim, whether it holds, and the best and the worst case."""
    for verdict in verdicts(bench):
        least, most = (
            pick(verdict.reached, key=verdict.reached.__getitem__) for pick in (min, max)
        )
        yield (
            f"{'met' if verdict.holds else 'NOT MET'}: {verdict.claim}; reached "
            f"{short(verdict.reached[least])} ({least}) to {short(verdict.reached[most])} ({most})"
        )


def markdown(bench: Bench) -> str:
    """The whole run."""
    lines = ["# `archsearch bench kernels`", "", *(f"- {line}" for line in head(bench)), ""]
    if claims := list(judged(bench)):
        lines += ["## What it is to show", "", *(f"- {line}" for line in claims), ""]
    for result in bench.results:
        lines += [f"## {title(result)}", "", floors(bench, result), ""]
        both = modes(result)
        lines += ["| | " + " | ".join(f"{MODES[m]}: {' | '.join(HEADS[1:])}" for m in both) + " |"]
        lines += ["|---|" + "---:|" * (len(both) * (len(HEADS) - 1))]
        for row in result.rows:
            if row.status == TIMED:
                numbers = [
                    cell
                    for mode in both
                    for cell in (
                        cells(bench, result, row, mode)[1:] if mode in row.times else [""] * 5
                    )
                ]
                lines += [f"| {row.name} | " + " | ".join(numbers) + " |"]
        lines += ["", *(f"- {line}" for line in remarks(result)), ""]
    return "\n".join(lines).rstrip() + "\n"


def write(bench: Bench, out: Path) -> None:
    """FILE.json with everything, and FILE.md to be read."""
    out.write_text(json.dumps(bench.as_json(), indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(bench), encoding="utf-8")
