"""FLOPs, bytes moved, parameters and state of a model, counted on shapes, node by node.

Every node runs on meta tensors under a mode that sees each operator. What a node costs depends on
its kind and on the shapes that it reads and on nothing else, values there are none: so a kind is
built once, run once for every set of shapes, and counted as often as the graph holds it. The sums
are those of the whole model run at once, which a test holds for every named architecture.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry

from archsearch import graph, shapes
from archsearch.cpu_path import CpuPath
from archsearch.ends import Ends, Tokens
from archsearch.model import Kind
from archsearch.spec import ModelSpec

KEPT = 4096
"""Kinds, and runs of them, that are remembered from one candidate to the next."""


@dataclass(frozen=True)
class Look:
    """All that there is to a meta tensor."""

    shape: torch.Size
    dtype: torch.dtype
    requires_grad: bool = False

    @classmethod
    def of(cls, x: Any) -> Any:
        """The look of a tensor; anything else is itself."""
        return cls(x.shape, x.dtype, x.requires_grad) if isinstance(x, Tensor) else x

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """A tensor that looks so."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta").requires_grad_(
            self.requires_grad
        )


@dataclass(frozen=True)
class TreeLook:
    """The looks of a state, a tree of tensors and plain values."""

    leaves: tuple[Any, ...]
    spec: TreeSpec

    @classmethod
    def of(cls, tree: Any) -> "TreeLook":
        leaves, spec = tree_flatten(tree)
        return cls(tuple(map(Look.of, leaves)), spec)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.leaves if isinstance(leaf, Look))

    def tree(self) -> Any:
        """A state that looks so."""
        leaves = [leaf.tensor() if isinstance(leaf, Look) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.spec)


class Counter(TorchDispatchMode):
    """Sums FLOPs by torch's formulas, ours among them, and the bytes that operators read and write.

    As torch's FlopCounterMode counts: matrix products, causal masks not halved. Views move nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes_moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = shapes.run(func, args, kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if not func.is_view:
            self.bytes_moved += _nbytes((args, kwargs)) + _nbytes(out)
        return out


def _nbytes(tree: Any) -> int:
    """Bytes of the tensors in a tree; storage shared by two of them is counted twice."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, tuple | list):
        return sum(map(_nbytes, tree))
    return sum(map(_nbytes, tree.values())) if isinstance(tree, dict) else 0


@dataclass(frozen=True)
class Count:
    """What one pass through a model, or through one node, costs.

    Attributes:
        flops: of all operators.
        bytes_moved: what they read and write.
        states: of each node that carries one, in the graph's order; of one node its own.
    """

    flops: int
    bytes_moved: int
    states: tuple[TreeLook, ...]

    @property
    def state_bytes(self) -> int:
        return sum(state.nbytes for state in self.states)


class Counts:
    """What a spec costs, counted without memory; `dtype` is that of weights and activations."""

    def __init__(self, spec: ModelSpec, ends: Ends, dtype: torch.dtype = torch.float32) -> None:
        self.spec, self.ends, self.dtype = spec, ends, dtype
        self.graph = spec.graph()
        order = nx.topological_sort(self.graph)
        self.nodes = [(Kind.of(self.graph, node), node) for node in order]

    @property
    def embedding_parameters(self) -> int:
        """Those of both ends: of language the embedding, which is the head as well."""
        return self.ends.parameters(self.spec.dim)

    @functools.cached_property
    def parameters(self) -> int:
        """Trainable numbers, the embedding included."""
        kinds = (kind for kind, _ in self.nodes if kind.op not in ("embed", "head"))
        between = sum(p.numel() for k in kinds for p in _module(k, None, self.dtype).parameters())
        return between + self.embedding_parameters

    def forward(self, batch: int, length: int, states: Sequence[TreeLook] | None = None) -> Count:
        """A forward pass without gradients over `length` tokens, on from the states."""
        return self._pass(batch, length, states)

    def state_bytes(self, batch: int, length: int) -> int:
        """What decoding carries after `length` tokens: as forward's, by less work."""
        return self._pass(batch, length, state_alone=self.streams).state_bytes

    def train(self, batch: int, length: int) -> Count:
        """A forward and a backward pass from a gradient of the logits."""
        return self._pass(batch, length, backward=True)

    def decode(self, batch: int, length: int) -> Count | None:
        """One more token for each sequence after `length` tokens; None where there is no state.

        The mean of several where layers run at a lower rate, which work on some tokens only.
        """
        if not self.streams:
            return None
        after, steps = self.forward(batch, length), []
        for _ in range(graph.period(self.graph)):
            steps.append(after := self.forward(batch, 1, after.states))
        n = len(steps)
        flops, moved = sum(s.flops for s in steps), sum(s.bytes_moved for s in steps)
        return Count(round(flops / n), round(moved / n), after.states)

    def _pass(
        self,
        batch: int,
        length: int,
        states: Sequence[TreeLook] | None = None,
        *,
        backward: bool = False,
        state_alone: bool = False,
    ) -> Count:
        run = _settled if state_alone else _run
        looks: dict[str, Look] = {}
        flops = moved = 0
        before, after = iter(states or ()), []
        read = self._inputs(batch, length)
        for kind, node in self.nodes:
            inputs = [looks[source] for source in graph.inputs(self.graph, node)]
            end = kind.op in ("embed", "head")
            inputs += [read] if end else []
            stateful = kind.op in graph.STATEFUL or (kind.op == "head" and not self.ends.tied)
            old = next(before) if states is not None and stateful else None
            ends = self.ends if end else None
            made = run(kind, ends, self.dtype, tuple(inputs), old, backward)
            looks[node], count = made
            flops, moved = flops + count.flops, moved + count.bytes_moved
            if stateful and self.streams:
                after += count.states
        return Count(flops, moved, tuple(after))

    def _inputs(self, batch: int, length: int) -> Look:
        with torch.device("meta"):
            x = self.ends.inputs(batch, length)
        return Look.of(x.to(self.dtype) if x.is_floating_point() else x)

    @property
    def streams(self) -> bool:
        """Whether there is a state to decode from."""
        return self.graph.graph["causal"] and self.ends.streams


@functools.lru_cache(KEPT)
def _module(kind: Kind, ends: Ends | None, dtype: torch.dtype) -> nn.Module:
    """The module of a kind without memory; of what has none, one without parameters."""
    with torch.device("meta"):
        if ends is None:
            module = kind.module() or nn.Identity()
        elif kind.op == "embed":
            module = ends.embed(kind.dim)()
        elif (head := ends.head(kind.dim)) is not None:
            module = head()
        else:
            assert isinstance(ends.reads, Tokens)
            module = nn.Linear(kind.dim, ends.reads.vocab, bias=False)
    return module.to(dtype)


@functools.lru_cache(KEPT)
def _run(
    kind: Kind,
    ends: Ends | None,
    dtype: torch.dtype,
    inputs: tuple[Look, ...],
    old: TreeLook | None,
    backward: bool,
) -> tuple[Look, Count]:
    """What a kind makes of such inputs, forward or forward and backward, and what that costs.

    An end, which has `ends`, is given the model's inputs last.
    """
    module, state = _module(kind, ends, dtype), old.tree() if old is not None else None
    xs = [look.tensor() for look in inputs]
    with CpuPath(), Counter() as counter, torch.set_grad_enabled(backward):
        if ends is None:
            y, new = kind.run(module, xs, state)
        elif kind.op == "embed" or ends.tied:
            y, new = module(xs[0]), None
        else:
            y, new = module(*xs, state)
        if y.requires_grad:
            y.backward(torch.empty_like(y))
    states = (TreeLook.of(new),) if kind.op in (*graph.STATEFUL, "head") else ()
    return Look.of(y), Count(counter.flops, counter.bytes_moved, states)


def _settled(
    kind: Kind,
    ends: Ends | None,
    dtype: torch.dtype,
    inputs: tuple[Look, ...],
    old: TreeLook | None,
    backward: bool,
) -> tuple[Look, Count]:
    """As _run, where only the state counts: a mixer whose state has a fixed size is not run.

    That is one whose state looks the same after a second token as after the first. Looks follow
    from looks alone, so it looks the same after any number of tokens, and, as all blocks stream
    (laws.py), after as many at once.
    """
    if kind.op == "mixer" and inputs[0].shape[1] > 1:
        batch, _, dim = inputs[0].shape
        token = (replace(inputs[0], shape=torch.Size((batch, 1, dim))),)
        first = _run(kind, ends, dtype, token, None, backward)[1].states
        second = _run(kind, ends, dtype, token, first[0], backward)[1].states
        if first == second:
            return inputs[0], Count(0, 0, first)
    return _run(kind, ends, dtype, inputs, old, backward)
