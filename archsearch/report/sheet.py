"""One architecture on a page of its own, in the report's look: `archsearch show --as html`."""

from archsearch.layers import is_chain
from archsearch.report import page
from archsearch.report.diagram import architecture
from archsearch.report.page import details, draw, escape
from archsearch.spec import ModelSpec

STREAM = (
    "The residual stream runs down on the left; every layer reads it and adds to it. Mixers "
    "and merges are coloured by type; point at a part to see all its options."
)
LAYERS = "A box is a layer; arrows come from the layers that it reads."


def sheet(spec: ModelSpec, name: str) -> str:
    """The page, one file that needs no network."""
    head = f'<header><h1>{escape(name)}</h1><p class="best">{escape(spec.summary())}</p></header>'
    return page.write(f"{name}: architecture", [head, drawn(spec), written(spec.to_yaml(name))])


def drawn(spec: ModelSpec) -> str:
    """The drawing, and how to read it."""
    legend = STREAM if is_chain(spec.plan()) else LAYERS
    return f'<p class="note">{legend}</p>{draw("architecture", architecture(spec))}'


def written(text: str) -> str:
    """A spec file to open."""
    return details("spec.yaml", f"<pre>{escape(text)}</pre>")
