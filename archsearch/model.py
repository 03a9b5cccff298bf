"""Graph -> nn.Module: one submodule per node, run in topological order.

The module's parameter names are the graph's node names, so weights move freely between this module
and the exported source, which is the same walk written out.
"""

from dataclasses import dataclass
from typing import cast

import networkx as nx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archsearch import graph
from archsearch.blocks import State
from archsearch.blocks.rate import Pool, Unpool
from archsearch.catalogue import PartSpec, factory
from archsearch.ends import Ends, ends_of
from archsearch.spec import ModelSpec


@dataclass(frozen=True)
class Kind:
    """A node without its name and place: nodes of one kind hold equal modules.

    Attributes:
        op: what it does, of archsearch.graph.
        part: what fills it, or None.
        sizes: of ops without a part.
        dim: the width that it gives.
        widths: of what it reads, in order.
    """

    op: str
    part: PartSpec | None
    sizes: tuple[int, ...]
    dim: int
    widths: tuple[int, ...]

    @classmethod
    def of(cls, architecture: nx.DiGraph, node: str) -> "Kind":
        """The kind of a node of a graph."""
        data, sources = architecture.nodes[node], graph.inputs(architecture, node)
        widths = tuple(architecture.nodes[source]["dim"] for source in sources)
        return cls(data["op"], data["part"], data["sizes"], data["dim"], widths)

    def module(self) -> nn.Module | None:
        """What such a node holds, as wide as what it reads."""
        if self.part is not None:
            branches = {"merge": len(self.widths) - 1, "join": len(self.widths)}
            more = [branches[self.op]] if self.op in branches else []
            return factory(self.part)(self.dim, *more)
        if self.op == "project":
            return nn.Linear(self.widths[0], self.dim, bias=False)
        if self.op in graph.STATEFUL:
            return {"pool": Pool, "unpool": Unpool}[self.op](*self.sizes)
        return None

    def run(self, module: nn.Module | None, xs: list[Tensor], old: State) -> tuple[Tensor, State]:
        """What the node gives, and its state where it carries one."""
        if self.op == "add":
            return xs[0] + xs[1], None
        if self.op == "concat":
            return torch.cat(xs, dim=-1), None
        if self.op == "slice":
            (start,) = self.sizes
            return xs[0][..., start : start + self.dim], None
        assert module is not None
        if self.op in graph.STATEFUL:
            # At a lower rate a short piece may hold no whole group: nothing happens there.
            skip = self.op == "mixer" and xs[0].shape[1] == 0
            return (xs[0], old) if skip else module(*xs, old)
        if self.op == "mlp":
            return module(xs[0])[0], None
        if self.op == "join":
            return module(torch.stack(xs).mean(0), *xs), None
        return module(*xs), None  # norm, merge, project


class Model(nn.Module):
    """A sequence model: y, state = model(inputs, state); for language logits, of tokens.

    The shapes of inputs (B, T, ...) and y are those of the ends; any T >= 1; state None at the
    start, then a tuple with one entry for each mixer, change of rate and head of its own. Pieces of
    a sequence give the logits of the whole. A model that sees the future (`causal: false`, or ends
    that look at whole windows) gives the state None and takes no other.
    """

    def __init__(self, architecture: nx.DiGraph, ends: Ends) -> None:
        super().__init__()
        self.architecture, self.ends = architecture, ends
        self.dropout, self.recompute = 0.0, False  # of training alone; see recipe.py
        dim = architecture.graph["dim"]
        self.embed = ends.embed(dim)()
        if isinstance(self.embed, nn.Embedding):
            # Also the head's: logits of a normed vector then have unit variance at birth. Smaller,
            # and the blocks drown the tokens in the residual stream (LOG.md, 2026-11-21).
            nn.init.normal_(self.embed.weight, std=dim**-0.5)
        self.steps: list[tuple[Kind, str, list[str]]] = []  # (kind, node, sources)
        for node in nx.topological_sort(architecture):
            kind = Kind.of(architecture, node)
            self.steps.append((kind, node, graph.inputs(architecture, node)))
            if kind.op not in ("embed", "head") and (module := kind.module()) is not None:
                self.add_module(node, module)
        if (head := ends.head(dim)) is not None:
            self.head = head()

    @property
    def streams(self) -> bool:
        """Whether a sequence can be read piece by piece."""
        return self.architecture.graph["causal"] and self.ends.streams

    @property
    def stateful(self) -> list[str]:
        """The nodes that carry a state, in the order of the state tuple."""
        carrying = graph.STATEFUL if self.ends.tied else (*graph.STATEFUL, "head")
        return [node for kind, node, _ in self.steps if kind.op in carrying]

    def forward(self, inputs: Tensor, state: State = None) -> tuple[Tensor, State]:
        if state is not None and not self.streams:
            raise ValueError(
                "this model sees the future (`causal: false`, or a normalisation of whole windows):"
                " it goes on from no state"
            )
        states = iter(state if state is not None else [None] * len(self.stateful))
        after: list[State] = []
        values: dict[str, Tensor] = {}
        for kind, node, sources in self.steps:
            if kind.op == "embed":
                values[node] = self.embed(inputs)
                continue
            xs = [values[source] for source in sources]
            if kind.op == "head" and self.ends.tied:
                values[node] = F.linear(xs[0], cast(Tensor, self.embed.weight))
                continue
            stateful = kind.op in (*graph.STATEFUL, "head")
            module, old = self._modules.get(node), next(states) if stateful else None
            if kind.op == "head":
                values[node], new = self.head(xs[0], inputs, old)
            elif kind.op == "add" and self.training and self.dropout:
                values[node], new = xs[0] + F.dropout(xs[1], self.dropout), None
            elif kind.op in ("mixer", "mlp") and self.recompute and torch.is_grad_enabled():
                values[node], new = checkpoint(kind.run, module, xs, old, use_reentrant=False)
            else:
                values[node], new = kind.run(module, xs, old)
            if stateful:
                after.append(new)
        return values["head"], tuple(after) if self.streams else None


def build(spec: ModelSpec, ends: Ends | None = None, *, vocab: int | None = None) -> Model:
    """The module of a spec, weights drawn from torch's global generator.

    Args:
        spec: the architecture.
        ends: what it reads and gives: `task.ends`.
        vocab: instead, for a model that predicts the next of so many tokens.
    """
    return Model(spec.graph(), ends_of(ends, vocab))


def build_meta(spec: ModelSpec, ends: Ends) -> Model:
    """The module without memory: shapes only, for counting."""
    with torch.device("meta"):
        return build(spec, ends)
