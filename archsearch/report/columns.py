"""Tables of trials: a row for each, columns of numbers in groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from archsearch.report.findings import Trial
from archsearch.report.page import escape, scrolling, words


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        group: the title above it, shared with its neighbours.
        get: the number of a trial, shown and sorted by.
        tell: how a number is written.
        more: what is added to it.
        floors: what rules reach that are no network, by their names.
    """

    group: str
    title: str
    get: Callable[[Trial], float | None]
    tell: Callable[[float], str] = "{:.3f}".format
    more: Callable[[Trial], str] = lambda trial: ""
    floors: dict[str, float] = field(default_factory=dict)

    def cell(self, trial: Trial) -> str:
        value = self.get(trial)
        if value is None:
            return '<td class="number">–</td>'
        text = escape(self.tell(value) + self.more(trial))
        return f'<td class="number" data-key="{value}">{text}</td>'

    def floor_cell(self, rule: str) -> str:
        floor = self.floors.get(rule)
        return f'<td class="number">{"" if floor is None else self.tell(floor)}</td>'


def lead(trial: Trial, kind: str, more: str = "") -> str:
    """The first two cells of a row, name and architecture; `more` is HTML below the latter."""
    name, design = escape(trial.name), escape(trial.summary)
    label = f" <small>{kind}</small>" if kind in ("best", "baseline") else ""
    return (
        f'<td class="name" data-key="{name}">{name}{label}</td>'
        f'<td class="design" data-key="{design}">{design}{more}</td>'
    )


def grouped(columns: Sequence[Column], rows: str, foot: str = "") -> str:
    """The table of rows that begin with `lead`; a click on a title sorts it."""
    groups = [(group, len(list(run))) for group, run in groupby(columns, key=lambda c: c.group)]
    above = "".join(f'<th colspan="{n}">{words(group)}</th>' for group, n in groups)
    titles = "".join(f'<th class="number" data-sort>{words(c.title)}</th>' for c in columns)
    return scrolling(
        f'<table><thead><tr><th colspan="2"></th>{above}</tr>'
        f"<tr><th data-sort>name</th><th data-sort>architecture</th>{titles}</tr></thead>"
        f"<tbody>{rows}</tbody>"
        f"<tfoot>{foot}</tfoot></table>"
    )
