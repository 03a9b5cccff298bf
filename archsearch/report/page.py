"""The frame of our pages: HTML elements, style, and the few lines of script that sort a table.

One file, no network: plotly.js is inlined once, and the content security policy forbids the rest.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


def escape(value: Any) -> str:
    """Any value as text that is safe in HTML."""
    return html.escape(str(value))


def words(name: Any) -> str:
    """A name of ours for a reader: `over_budget` is `over budget`."""
    return escape(name).replace("_", " ")


def section(title: str, content: str, note: str = "") -> str:
    """A section; title and note are text, content is HTML."""
    about = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}{content}</section>"


def details(title: str, content: str) -> str:
    """Content that a reader opens."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table; head is text, cells are HTML."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return scrolling(f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>")


def scrolling(content: str) -> str:
    """Content that may be wider than the page."""
    return f'<div class="wide">{content}</div>'


def draw(name: str, figure: go.Figure) -> str:
    """A figure under a fixed id, so that the same study gives the same page."""
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height=f"{figure.layout.height}px",  # type: ignore[attr-defined]
        config={
            "displaylogo": False,
            "responsive": True,
            "modeBarButtons": [["toImage", "resetScale2d"]],
        },
    )
    return scrolling(drawn)


def write(title: str, sections: Iterable[str]) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
{"".join(f"{content}{chr(10)}" for content in sections)}</main>
<script>{SORTING}</script>
</body>
</html>
"""


POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

STYLE = """
:root {
  --ink: #1c2127; --soft: #5d6672; --line: #d9dde2; --paper: #ffffff; --tint: #f4f6f8;
  --best: #c25400; --good: #3b7a57; --bad: #b3392f; --over: #c98a1b; --same: #7a869a;
  --odd: #a9b1bc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e6ea; --soft: #9aa3ae; --line: #343b44; --paper: #15181c; --tint: #1e2329;
    --best: #f08a3c; --good: #5aa37c; --bad: #e0736a; --over: #dba63f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); }
body { font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 20px 0 4px; }
small, .note { color: var(--soft); font-size: 13px; }
p { max-width: 92ch; margin: 8px 0; }
p.best { font: 600 18px/1.4 ui-monospace, monospace; color: var(--best); max-width: none; }
p.best small { margin-left: 12px; font-weight: 400; }
.bar { display: flex; gap: 2px; height: 14px; margin: 12px 0; }
.bar i { border-radius: 2px; min-width: 3px; background: var(--fate); }
.tiles { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; margin: 0 0 12px; padding: 0; }
.tiles li { flex: 1 1 110px; padding: 8px 12px; border-radius: 4px; }
.tiles li { background: var(--tint); border-top: 3px solid var(--fate, transparent); }
.tiles b { display: block; font-size: 22px; line-height: 1.2; }
.tiles small { display: block; }
.trained { --fate: var(--good); } .failed { --fate: var(--bad); }
.over_budget { --fate: var(--over); } .duplicate { --fate: var(--same); }
.pruned { --fate: var(--soft); } .invalid { --fate: var(--odd); }
.unfinished { --fate: var(--line); }
.wide { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); }
.pair > div { min-width: 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 7px; text-align: left; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th[colspan] { border-bottom: 0; padding-bottom: 0; color: var(--ink); }
td.number, th.number { text-align: right; }
td.number, td.name { white-space: nowrap; } td.design { min-width: 200px; }
th[data-sort] { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ↑"; } th[aria-sort=descending]::after { content: " ↓"; }
tr.best td { background: color-mix(in srgb, var(--best) 12%, transparent); }
tr.baseline td { background: var(--tint); }
tr.failed td { color: var(--soft); } .cause { color: var(--bad); }
tfoot td { color: var(--soft); font-style: italic; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--tint); padding: 12px 16px; border-radius: 4px; }
pre { overflow-x: auto; font-size: 13px; }
td pre { margin: 0; padding: 0; background: none; }
.js-plotly-plot .infolayer text, .js-plotly-plot .cartesianlayer text {
  fill: var(--ink) !important;
}
"""

SORTING = """
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[head.cellIndex].dataset.key;
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      if (!key(a) || !key(b)) return !key(a) - !key(b);  // what is missing stays last
      const order = key(a).localeCompare(key(b), "en", {numeric: false});
      const difference = isNaN(key(a)) ? order : key(a) - key(b);
      return up ? difference : -difference;
    });
    body.append(...rows);
  });
}
"""
