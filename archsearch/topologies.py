"""Topologies: how mixers are fused over depth. Each lays itself out as one Planned layer per layer.

interleave    one mixer a layer, minor ones among major ones
pattern       one mixer a layer, spelled by letters
parallel      every layer runs several mixers on the same input and merges them
split         every layer divides its channels between two mixers
hierarchical  stages of depth, each at its own rate
graph         named layers that read one another

archsearch.graph turns the plans into a graph; topologies differ in what can be said shortly, not in
what is built.
"""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import networkx as nx
import pydantic

from archsearch.blocks.merge import Mean
from archsearch.catalogue import MergeSpec, MixerSpec, schema
from archsearch.reading import nearest
from archsearch.validation import Frozen

INPUT = "input"
"""What the first nodes of a graph read: the embedded tokens."""


class Branches(Frozen):
    """What mixes time in one layer: branches, joined by a merge where there are several."""

    branches: Annotated[list[MixerSpec], pydantic.Field(min_length=1)]
    merge: MergeSpec = schema(Mean)()
    branch_norm: Literal["none", "rms"] = "rms"


class Division(Frozen):
    """Two mixers that divide the width: the first has round(ratio * D) of the D channels.

    over: channels   each part reads and writes channels of its own
          heads      each part reads all channels by a projection to its width, as a head does; a
                     projection of both gives the layer's output
    """

    parts: Annotated[list[MixerSpec], pydantic.Field(min_length=2, max_length=2)]
    ratio: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    over: Literal["channels", "heads"] = "channels"

    def widths(self, dim: int) -> tuple[int, int]:
        """Channels of the two parts; ValueError where one would have none."""
        first = round(self.ratio * dim)
        if not 0 < first < dim:
            raise ValueError(
                f"split: ratio {self.ratio} of dim {dim} leaves one part without a channel; "
                f"take a ratio between {1 / dim:.3g} and {1 - 1 / dim:.3g}"
            )
        return first, dim - first


Layer = Branches | Division


@dataclass(frozen=True)
class Planned:
    """A layer in its place.

    Attributes:
        layer: what mixes time in it.
        reads: the layers before it that it reads, by index; -1 is the embedding.
        join: the merge of what it reads, where that is more than one.
        rate: it runs on every `rate` tokens pooled into one.
        conv: width of the causal convolution before its mixing; 0 is none.
    """

    layer: Layer
    reads: tuple[int, ...]
    join: MergeSpec | None = None
    rate: int = 1
    conv: int = 0


def is_chain(plan: list[Planned]) -> bool:
    """Whether every layer reads the one below it, and nothing else."""
    return all(planned.reads == (i - 1,) for i, planned in enumerate(plan))


def chain(layers: list[Layer], rates: list[int] | None = None) -> list[Planned]:
    """Layers on top of each other."""
    rates = rates or [1] * len(layers)
    return [
        Planned(layer, (i - 1,), rate=rate)
        for i, (layer, rate) in enumerate(zip(layers, rates, strict=True))
    ]


class Interleave(Frozen):
    """One mixer a layer: `minor` in some layers of every period, `major` elsewhere.

    period p     a minor once every p layers, first of them; 2 unless told
    ratio "m:r"  r minors after m majors, a period of m + r layers; instead of a period
    phase        in [0, 1): all of it floor(phase * period) layers later
    """

    type: Literal["interleave"] = "interleave"
    major: MixerSpec
    minor: MixerSpec | None = None
    period: Annotated[int, pydantic.Field(ge=2)] | None = None
    ratio: Annotated[str, pydantic.Field(pattern=r"^[1-9][0-9]*:[1-9][0-9]*$")] | None = None
    phase: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0

    @pydantic.model_validator(mode="after")
    def _period_or_ratio(self) -> "Interleave":
        if self.period is not None and self.ratio is not None:
            raise ValueError(
                f"period {self.period} and ratio {self.ratio} both say how often; drop one"
            )
        return self

    def plan(self, layers: int) -> list[Planned]:
        majors, minors, start = 0, 1, 0
        if self.ratio is not None:
            majors, minors = map(int, self.ratio.split(":"))
            start = majors
        period = majors + minors if self.ratio else self.period or 2
        start += math.floor(self.phase * period)
        minor = self.major if self.minor is None else self.minor
        return chain(
            [
                Branches(branches=[minor if (i - start) % period < minors else self.major])
                for i in range(layers)
            ]
        )


class Pattern(Frozen):
    """One mixer a layer, spelled: MMR over and over, with the mixers {M: mamba, R: retention}."""

    type: Literal["pattern"] = "pattern"
    mixers: Annotated[
        dict[Annotated[str, pydantic.Field(pattern=r"^[A-Za-z]$")], MixerSpec],
        pydantic.Field(min_length=1),
    ]
    pattern: Annotated[str, pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _same_letters(self) -> "Pattern":
        if set(self.pattern) != set(self.mixers):
            raise ValueError(
                f"the pattern {self.pattern!r} has the letters {sorted(set(self.pattern))}, "
                f"mixers are {sorted(self.mixers)}; use each of them, and no other"
            )
        return self

    def plan(self, layers: int) -> list[Planned]:
        letters = itertools.islice(itertools.cycle(self.pattern), layers)
        return chain([Branches(branches=[self.mixers[letter]]) for letter in letters])


class Parallel(Branches):
    """Every layer runs several mixers on the same input and merges them."""

    type: Literal["parallel"] = "parallel"

    def plan(self, layers: int) -> list[Planned]:
        fields = {name: getattr(self, name) for name in Branches.model_fields}
        return chain([Branches(**fields)] * layers)


class Split(Division):
    """Every layer divides its channels, or its heads, between two mixers."""

    type: Literal["split"] = "split"

    def plan(self, layers: int) -> list[Planned]:
        fields = {name: getattr(self, name) for name in Division.model_fields}
        return chain([Division(**fields)] * layers)


class Kind(Frozen):
    """What a layer holds: a mixer, a parallel fusion or a split."""

    mixer: MixerSpec | None = None
    parallel: Branches | None = None
    split: Division | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_three(self) -> "Kind":
        if sum(x is not None for x in (self.mixer, self.parallel, self.split)) != 1:
            raise ValueError("say `mixer:`, `parallel:` or `split:`, one of them")
        return self

    def layer(self) -> Layer:
        if self.mixer is not None:
            return Branches(branches=[self.mixer])
        layer = self.parallel or self.split
        assert layer is not None
        return layer


class Stage(Kind):
    """A run of equal layers.

    At rate r they see the means of r tokens each, and what they add is held from the end of one
    group to the end of the next: causal, and 1/r of the work.
    """

    rate: Literal[1, 2, 4, 8] = 1


class Hierarchical(Frozen):
    """Stages of depth, bottom to top: `depth` says how many layers each stage has, 0 at least."""

    type: Literal["hierarchical"] = "hierarchical"
    stages: Annotated[dict[str, Stage], pydantic.Field(min_length=1)]
    depth: dict[str, Annotated[int, pydantic.Field(ge=0)]]

    @pydantic.model_validator(mode="after")
    def _same_names(self) -> "Hierarchical":
        if list(self.stages) != list(self.depth):
            raise ValueError(
                f"depth names {list(self.depth)}, stages are {list(self.stages)}; "
                "both list the same names in the same order"
            )
        return self

    def plan(self, layers: int) -> list[Planned]:
        if (total := sum(self.depth.values())) != layers:
            raise ValueError(
                f"depth adds up to {total} layers, layers is {layers}; make them equal"
            )
        each = [s for name, s in self.stages.items() for _ in range(self.depth[name])]
        return chain([stage.layer() for stage in each], [stage.rate for stage in each])


class Node(Kind):
    """A layer with a name, the names that it reads, and how it joins several."""

    reads: Annotated[list[str], pydantic.Field(min_length=1)]
    join: MergeSpec = schema(Mean)()


class Graph(Frozen):
    """Named layers. A node reads `input` or other nodes; the one that nobody reads is the output.

    A gate or router that joins several reads their mean.
    """

    type: Literal["graph"] = "graph"
    nodes: Annotated[dict[str, Node], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _hangs_together(self) -> "Graph":
        if INPUT in self.nodes:
            raise ValueError(f"a node cannot be named {INPUT!r}: that is what the first nodes read")
        for name, node in self.nodes.items():
            others = [INPUT, *(n for n in self.nodes if n != name)]
            for source in node.reads:
                if source not in self.nodes and source != INPUT:
                    raise ValueError(f"{name} reads {source!r}, no node; {nearest(source, others)}")
            if len(set(node.reads)) < len(node.reads):
                raise ValueError(f"{name} reads {node.reads}; name each source once")
        edges = nx.DiGraph((s, name) for name, node in self.nodes.items() for s in node.reads)
        if not nx.is_directed_acyclic_graph(edges):
            around = [source for source, _ in nx.find_cycle(edges)]
            raise ValueError(
                f"{' -> '.join([*around, around[0]])} is a cycle; cut one of its edges"
            )
        ends = [name for name in self.nodes if not edges.out_degree(name)]
        if len(ends) > 1:
            raise ValueError(
                f"nobody reads {', '.join(ends)}: one of them can be the output, "
                "let another node read the others or drop them"
            )
        return self

    def plan(self, layers: int) -> list[Planned]:
        if len(self.nodes) != layers:
            raise ValueError(f"{len(self.nodes)} nodes, layers is {layers}; make them equal")
        edges = nx.DiGraph((s, name) for name, node in self.nodes.items() for s in node.reads)
        order = list(nx.topological_sort(edges))  # begins with the input
        index = {name: i - 1 for i, name in enumerate(order)}
        return [
            Planned(node.layer(), tuple(index[s] for s in node.reads), node.join)
            for node in (self.nodes[name] for name in order[1:])
        ]


if TYPE_CHECKING:
    Topology = Interleave | Pattern | Parallel | Split | Hierarchical | Graph
else:
    Topology = Annotated[
        Interleave | Pattern | Parallel | Split | Hierarchical | Graph,
        pydantic.Field(discriminator="type"),
    ]
