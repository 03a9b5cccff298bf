"""The section of how fast the finalists are and what they hold, as archsearch.speed measured it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from archsearch.report.columns import Column, grouped, lead
from archsearch.report.findings import Findings, Trial, number
from archsearch.report.latency import TITLES, latency
from archsearch.report.page import details, draw, escape, section
from archsearch.units import BYTES, COUNT, SECONDS, Cost

RATE = Cost("", "", 1000, COUNT)
HELD = Cost("", "", 1024, BYTES)


def speeds(findings: Findings) -> str:
    """The section; empty as long as nothing was measured."""
    measured = [trial for trial in findings.finalists if trial.speed]
    if not measured:
        return ""
    columns = _columns(measured)
    rows = "".join(
        f'<tr class="{findings.kind(trial)}">{lead(trial, findings.kind(trial))}'
        f"{''.join(column.cell(trial) for column in columns)}</tr>"
        for trial in measured
    )
    figures = [(what, figure) for what in TITLES if (figure := latency(findings, what)) is not None]
    drawn = "".join(f"<div>{draw(what, figure)}</div>" for what, figure in figures)
    content = grouped(columns, rows) + f'<div class="pair">{drawn}</div>'
    if left := [told for trial in measured for told in left_out(trial)]:
        items = "".join(f"<li>{escape(told)}</li>" for told in left)
        content += details(f"Not measured: {len(left)}", f"<ul>{items}</ul>")
    return section("Speed and memory", content, _note(measured))


def left_out(trial: Trial) -> Iterator[str]:
    """A sentence for everything that was not measured of a trial."""
    speed = trial.speed
    reasons = [("", speed), (" decoding", speed.get("decode") or {})]
    reasons += [(f" {e.get('context')} tokens", e) for e in speed.get("contexts") or []]
    for what, entry in reasons:
        if (reason := entry.get("left_out")) is not None:
            last = str(reason).strip().splitlines()[-1:]  # of an error in a worker, the error
            yield f"{trial.name},{what or ' all'}: {' '.join(last)}"


def _columns(measured: list[Trial]) -> list[Column]:
    entries = [entry for trial in measured for entry in trial.speed.get("contexts") or []]
    contexts = sorted({entry["context"] for entry in entries})
    columns = [
        _rate("training", "train"),
        Column("training", "peak memory", partial(_at, path=("train_memory",)), HELD.tell),
        _rate("decoding", "decode"),
    ]
    for group, what in (("prefill, tokens", "prefill"), ("one more token after", "token")):
        for context in contexts:
            get = partial(_at, path=(what, "median"), context=context)
            columns.append(Column(group, f"{context:,}", get, SECONDS.tell))
    held = [entry["context"] for entry in entries if "state_bytes" in entry]
    for context in sorted(held)[-1:]:
        get = partial(_at, path=("state_bytes",), context=context)
        columns.append(Column("state after", f"{context:,}", get, HELD.tell))
    return columns


def _rate(group: str, name: str) -> Column:
    """Tokens per second, and half the distance of the quartiles in percent of the time."""

    def spread(trial: Trial) -> str:
        ends = [_at(trial, (name, end)) for end in ("lower", "median", "upper")]
        known = [end for end in ends if end]
        if len(known) < len(ends):
            return ""
        lower, median, upper = known
        return f" ± {50 * (upper - lower) / median:.0f}%"

    get = partial(_at, path=(name, "tokens_per_second"))
    return Column(group, "tokens/s", get, RATE.tell, spread)


def _at(trial: Trial, path: tuple[str, ...], context: int | None = None) -> float | None:
    """A number of a trial's speed, or of that at a context."""
    here: Any = trial.speed
    if context is not None:
        entries = here.get("contexts") or []
        here = next((entry for entry in entries if entry["context"] == context), {})
    for key in path:
        here = here.get(key) if isinstance(here, dict) else None
    return number(here)


def _note(measured: list[Trial]) -> str:
    """What the numbers are of, and what they were measured on."""
    speeds = _all(measured)
    size = _told(f"batch {s.get('batch')}, {s.get('length')} tokens each" for s in speeds)
    precision = _told(s.get("precision") for s in speeds)
    peak = {"trace": "traced", "allocator": "the allocator's"}
    source = _told(peak.get(s.get("memory_by", ""), "unknown") for s in speeds)
    return (
        f"Measured one after the other when all training was over: {_told(_machines(speeds))}. "
        f"Training: a real step of the first task ({size}), {precision}; peak memory is that of "
        f"an AdamW step in float32, {source}. Decoding: one more token for each of such a batch. "
        "The rest: one sequence, in float32. Times are medians; ± is half the distance of the "
        "quartiles, and they bound the bands in the figures."
    )


def _all(measured: list[Trial]) -> list[dict[str, Any]]:
    """The speeds that are more than a reason."""
    return [trial.speed for trial in measured if "left_out" not in trial.speed]


def _machines(speeds: list[dict[str, Any]]) -> Iterator[str]:
    """In words what they were measured on; equal ones are told once, with all their loads."""
    loads: dict[str, list[float]] = {}
    for speed in speeds:
        machine = speed.get("machine") or {}
        where = machine.get("accelerator") or f"{machine.get('device')} ({machine.get('cpu')})"
        told = f"threads {machine.get('threads')}, {machine.get('clock')}, {where}, "
        told += f"torch {machine.get('torch')}"
        loads.setdefault(told, []).append(machine.get("load") or 0.0)
    for told, found in loads.items():
        yield f"{told}, load average {min(found):.1f} to {max(found):.1f}"


def _told(parts: Any) -> str:
    """Different ones, each once."""
    return "; ".join(dict.fromkeys(map(str, parts)))
