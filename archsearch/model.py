"""Graph -> nn.Module: one submodule per node, run in topological order.

The module's parameter names are the graph's node names, so weights move freely between this module
and the exported source, which is the same walk written out.
"""

import networkx as nx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch import graph
from archsearch.blocks import State
from archsearch.blocks.rate import Pool, Unpool
from archsearch.catalogue import factory
from archsearch.spec import ModelSpec


class Model(nn.Module):
    """A sequence model: logits, state = model(tokens, state).

    tokens (B, T) int64, any T >= 1; logits (B, T, vocab); state None at the start, then a tuple
    with one entry per mixer and change of rate. Pieces of a sequence give the logits of the whole.
    A model that sees the future (causal: false) gives the state None and takes no other.
    """

    def __init__(self, architecture: nx.DiGraph, vocab: int) -> None:
        super().__init__()
        self.architecture, self.vocab = architecture, vocab
        dim = architecture.graph["dim"]
        self.embed = nn.Embedding(vocab, dim)
        # Also the head: logits of a normed vector then have unit variance at birth. Smaller, and
        # the blocks drown the tokens in the residual stream (LOG.md, 2026-11-21).
        nn.init.normal_(self.embed.weight, std=dim**-0.5)
        self.steps: list[tuple[str, str, list[str]]] = []  # (op, node, sources)
        for node in nx.topological_sort(architecture):
            sources = graph.inputs(architecture, node)
            self.steps.append((architecture.nodes[node]["op"], node, sources))
            if (module := self._module(node, sources)) is not None:
                self.add_module(node, module)

    def _module(self, node: str, sources: list[str]) -> nn.Module | None:
        """What a node holds, as wide as what it reads."""
        nodes = self.architecture.nodes
        op, part, sizes, dim = (nodes[node][key] for key in ("op", "part", "sizes", "dim"))
        if part is not None:
            branches = {"merge": len(sources) - 1, "join": len(sources)}
            return factory(part)(dim, *([branches[op]] if op in branches else []))
        if op == "project":
            return nn.Linear(nodes[sources[0]]["dim"], dim, bias=False)
        return {"pool": Pool, "unpool": Unpool}[op](*sizes) if op in graph.STATEFUL else None

    @property
    def stateful(self) -> list[str]:
        """The nodes that carry a state, in the order of the state tuple."""
        return [node for op, node, _ in self.steps if op in graph.STATEFUL]

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        causal = self.architecture.graph["causal"]
        if state is not None and not causal:
            raise ValueError("this model sees the future (causal: false): it goes on from no state")
        states = iter(state if state is not None else [None] * len(self.stateful))
        after: list[State] = []
        values: dict[str, Tensor] = {}
        for op, node, sources in self.steps:
            xs = [values[source] for source in sources]
            if op == "embed":
                values[node] = self.embed(tokens)
            elif op == "head":
                values[node] = F.linear(xs[0], self.embed.weight)
            elif op in graph.STATEFUL:
                old = next(states)
                # At a lower rate a short piece may hold no whole group: nothing happens there.
                skip = op == "mixer" and xs[0].shape[1] == 0
                values[node], new = (xs[0], old) if skip else self.get_submodule(node)(*xs, old)
                after.append(new)
            else:
                values[node] = self._stateless(op, node, xs)
        return values["head"], tuple(after) if causal else None

    def _stateless(self, op: str, node: str, xs: list[Tensor]) -> Tensor:
        if op == "add":
            return xs[0] + xs[1]
        if op == "concat":
            return torch.cat(xs, dim=-1)
        data = self.architecture.nodes[node]
        if op == "slice":
            (start,) = data["sizes"]
            return xs[0][..., start : start + data["dim"]]
        module = self.get_submodule(node)
        if op == "mlp":
            return module(xs[0])[0]
        if op == "join":
            return module(torch.stack(xs).mean(0), *xs)
        return module(*xs)  # norm, merge, project


def build(spec: ModelSpec, *, vocab: int) -> Model:
    """The module of a spec, weights drawn from torch's global generator."""
    return Model(spec.graph(), vocab)


def build_meta(spec: ModelSpec, *, vocab: int) -> Model:
    """The module without memory: shapes only, for counting."""
    with torch.device("meta"):
        return build(spec, vocab=vocab)
