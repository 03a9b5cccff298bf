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
from archsearch.catalogue import factory
from archsearch.spec import ModelSpec


class Model(nn.Module):
    """A sequence model: logits, state = model(tokens, state).

    tokens (B, T) int64, any T >= 1; logits (B, T, vocab); state None at the start, then a tuple
    with one entry per mixer. Pieces of a sequence give the logits of the whole.
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
            op, part = (architecture.nodes[node][key] for key in ("op", "part"))
            sources = graph.inputs(architecture, node)
            self.steps.append((op, node, sources))
            if part is not None:
                sizes = (dim, len(sources) - 1) if op == "merge" else (dim,)
                self.add_module(node, factory(part)(*sizes))

    @property
    def mixers(self) -> list[str]:
        """The nodes that carry a state, in the order of the state tuple."""
        return [node for op, node, _ in self.steps if op == "mixer"]

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        states = iter(state if state is not None else [None] * len(self.mixers))
        after: list[State] = []
        values: dict[str, Tensor] = {}
        for op, node, sources in self.steps:
            xs = [values[source] for source in sources]
            if op == "embed":
                y = self.embed(tokens)
            elif op == "add":
                y = xs[0] + xs[1]
            elif op == "head":
                y = F.linear(xs[0], self.embed.weight)
            elif op == "mixer":
                y, next_state = self.get_submodule(node)(xs[0], next(states))
                after.append(next_state)
            elif op == "mlp":
                y, _ = self.get_submodule(node)(xs[0])
            else:
                y = self.get_submodule(node)(*xs)
            values[node] = y
        return values["head"], tuple(after)


def build(spec: ModelSpec, *, vocab: int) -> Model:
    """The module of a spec, weights drawn from torch's global generator."""
    return Model(graph.lower(spec), vocab)


def build_meta(spec: ModelSpec, *, vocab: int) -> Model:
    """The module without memory: shapes only, for counting."""
    with torch.device("meta"):
        return build(spec, vocab=vocab)
