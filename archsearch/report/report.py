"""report.html: one page that tells a study, from its folder alone, for a browser without network.

Whatever comes from data is escaped where it enters the HTML. What else makes the page is named in
archsearch.report.
"""

from pathlib import Path
from typing import Any

from archsearch import reading
from archsearch.durable import write_atomic
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.ram import size
from archsearch.report import figures, page
from archsearch.report.agreement import agreement
from archsearch.report.entries import entries
from archsearch.report.findings import Findings
from archsearch.report.front import front
from archsearch.report.page import details, draw, escape, section, table, words
from archsearch.report.race import race
from archsearch.report.seeds import seeds
from archsearch.report.sheet import drawn, written
from archsearch.report.speeds import speeds
from archsearch.report.verdict import verdict
from archsearch.units import COSTS, COUNT, MORE, Cost


def write_report(study: str | Path) -> Path:
    """Writes report.html into a study's folder, finished or not, and returns its path.

    Raises:
        UserError: the folder holds no study.
    """
    folder = StudyFolder(study)
    findings = Findings.read(folder)
    sections = [
        _headline(findings),
        seeds(findings),
        race(findings),
        _ledger(findings),
        front(findings),
        _pareto(findings),
        _curves(findings),
        agreement(findings),
        speeds(findings),
        entries(findings),
        _best(findings, folder),
        _making(findings),
    ]
    write_atomic(folder.report, page.write(f"{findings.name}: archsearch report", sections))
    return folder.report


def _headline(findings: Findings) -> str:
    """What was found, in one line, and how far it can be believed."""
    best = findings.best
    parts = [f"<h1>{escape(findings.name)}</h1>"]
    if best is not None:
        name = f"<small>{escape(best.name)}</small>"
        parts.append(f'<p class="best">{escape(best.summary)}{name}</p>')
    parts.append(f'<p class="verdict">{escape(verdict(findings))}</p>')
    if not findings.record.get("finished"):
        wanted = (findings.space.get("search") or {}).get("trials", "?")
        parts.append(
            '<p class="note">The study was not finished when this page was written: '
            f"{len(findings.candidates)} of {escape(wanted)} candidates trained.</p>"
        )
    parts += [f'<p class="note">{escape(text)}</p>' for text in breaches(findings)]
    if (figure := figures.finals(findings)) is not None:
        parts.append(draw("finals", figure))
    return f"<header>{''.join(parts)}</header>"


def breaches(findings: Findings) -> list[str]:
    """A sentence for every trained model that was measured to be over a budget."""
    told = {cost.name: cost for cost in (*COSTS, *MORE)}
    return [
        f"{trial.name} breaks a budget as measured after training: "
        f"{told[name].title} {told[name].tell(cost)}, limit {told[name].tell(limit)}."
        for trial in findings.trials
        for name, cost, limit in trial.breaches
    ]


FATES = {
    "trained": "",
    "pruned": "pruned_by",
    "failed": "failed_by",
    "over_budget": "over_budget_by",
    "duplicate": "",
    "invalid": "",
    "unfinished": "",
}
"""What can become of a proposal, and the count in record.json that says why."""


def _ledger(findings: Findings) -> str:
    """What became of every proposal: a bar, the numbers under it, and the rejected by name."""
    counts = findings.record.get("counts") or {}
    bar, tiles = [], [f"<li><b>{escape(counts.get('proposed', 0))}</b> proposed</li>"]
    for fate, reasons in FATES.items():
        n, name = int(counts.get(fate) or 0), words(fate)
        why = ", ".join(f"{words(cause)} {k}" for cause, k in (counts.get(reasons) or {}).items())
        tiles.append(f'<li class="{fate}"><b>{n}</b> {name}<small>{why}</small></li>')
        if n:
            bar.append(f'<i class="{fate}" style="flex: {n}" title="{name} {n}"></i>')
    content = f'<div class="bar">{"".join(bar)}</div><ul class="tiles">{"".join(tiles)}</ul>'
    if findings.untrained:
        head = ["proposal", "fate", "why", "architecture"]
        rows = [_untrained(entry) for entry in findings.untrained]
        content += details("Proposals that were not trained to the end", table(head, rows))
    return section("Every proposal counted", content, _took(counts, findings.memory))


def _took(counts: dict[str, Any], memory: float | None) -> str:
    """What the search trained, and what that took."""
    told = f"{counts.get('trained', 0)} trained of {counts.get('proposed', 0)} proposed."
    if deaths := counts.get("deaths"):
        told += f" Workers died {deaths} times; what they had was begun again."
    if not (spent := counts.get("spent")) or not spent.get("seconds"):
        return told
    tokens, flops = (Cost("", name, 1000, COUNT).tell(spent[name]) for name in ("tokens", "flops"))
    most = f" No training held more than {size(memory)}." if memory else ""
    return (
        f"{told} What came to a rung or the end trained for {spent['seconds'] / 60:.1f} minutes of "
        f"one worker, over {tokens} positions, in {flops} FLOPs of training steps.{most}"
    )


def _untrained(entry: dict[str, Any]) -> list[str]:
    """A proposal not trained to the end: its name, fate, reason and architecture."""
    why = entry.get("message")
    if entry.get("state") == "duplicate":
        why = f"the architecture of trial {entry.get('duplicate_of')}"
    if entry.get("state") == "pruned":
        why = f"loss {entry['loss']:.3f} at rung {len(entry['rungs'])}: others were better there"
    summary = entry.get("summary") or "–"
    return [
        escape(entry.get("name")),
        words(entry.get("state")),
        escape(why or "–"),
        escape(summary),
    ]


def _pareto(findings: Findings) -> str:
    losses = {
        "nats": "Loss is the mean over tasks of cross-entropy in nats per answer",
        "": "Loss is the mean over tasks of what each makes small, in different units",
    }
    said = losses.get(findings.unit(), f"Loss is the mean over tasks of the {findings.unit()}")
    note = f"{said}, on the validation split. Nothing trained lies below the step line."
    if not findings.trained:
        return section("Loss against cost", "<p>Nothing has been trained yet.</p>")
    return section("Loss against cost", draw("pareto", figures.pareto(findings)), note)


def _curves(findings: Findings) -> str:
    if not findings.trained:
        return ""
    note = (
        "Lines are training loss, dots validation loss, averaged over all lengths that a task "
        "evaluates. The dotted line is the floor: what a rule reaches that has learned nothing."
    )
    drawn = [
        f"<div><h3>{words(task)}</h3>{draw(f'curves-{i}', figures.curves(findings, task))}</div>"
        for i, task in enumerate(findings.tasks)
    ]
    side_by_side = ' class="pair"' if len(drawn) > 1 else ""
    return section("Learning curves", f"<div{side_by_side}>{''.join(drawn)}</div>", note)


def _best(findings: Findings, folder: StudyFolder) -> str:
    """The best architecture, drawn and as a file."""
    if findings.best is None:
        return ""
    number = findings.best.number
    try:
        drawing = drawn(folder.read_spec(number))
    except UserError as error:  # a block that this installation does not have, or no longer
        drawing = f"<p>It cannot be drawn here: {escape(error)}</p>"
    text = (folder.trial(number) / "spec.yaml").read_text(encoding="utf-8")
    return section(f"The best architecture, {findings.best.name}", drawing + written(text))


RECORDED = (
    "command",
    "started",
    "finished",
    "commit",
    "archsearch",
    "python",
    "versions",
    "machine",
    "seeds",
)


def _making(findings: Findings) -> str:
    """What a result depends on: tasks, training, seeds, versions, machine; the whole space."""
    record, space = findings.record, findings.space
    facts = {key: record.get(key) for key in RECORDED}
    facts |= {key: space.get(key) for key in ("train", "search", "final", "budgets")}
    about = {task["type"]: task for task in space.get("tasks") or []}
    for name, measured in (record.get("tasks") or {}).items():
        facts[f"task {name}"] = about.get(name, {}) | measured
    rows = [[words(key), _plain(value)] for key, value in facts.items()]
    content = details("Settings, seeds, versions, machine", table(["", ""], rows))
    content += details("space.yaml", _plain(space))
    return section("How it was made", content)


def _plain(value: Any) -> str:
    """A recorded value: YAML for what has parts, a dash for what is unknown."""
    if value is None:
        return "–"
    if isinstance(value, dict | list):
        return f"<pre>{escape(reading.write(value, flow=None))}</pre>"
    return escape(value)
