"""Topologies: how mixers are fused over depth. Each lays itself out as one Planned layer per layer.

interleave    one mixer a layer, minor ones among major ones
pattern       one mixer a layer, spelled by letters
parallel      every layer runs several mixers on the same input and merges them
split         every layer divides its channels between mixers
stack         layers one by one
hierarchical  stages of depth, each at its own rate
graph         named layers that read one another

archsearch.graph turns the plans into a graph; topologies differ in what can be said shortly, not in
what is built.
"""

import itertools
import math
from typing import TYPE_CHECKING, Annotated, Literal

import networkx as nx
import pydantic

from archsearch.blocks.merge import Mean
from archsearch.catalogue import MergeSpec, MixerSpec, schema
from archsearch.layers import Branches, Division, Kind, Planned, chain
from archsearch.reading import nearest
from archsearch.validation import Frozen, told

INPUT = "input"
"""What the first nodes of a graph read: the embedded tokens."""


class Interleave(Frozen):
    """One mixer a layer: `minor` in some layers of every period, `major` elsewhere.

    All of it stands floor(phase * period) layers later.
    """

    type: Literal["interleave"] = "interleave"
    major: Annotated[MixerSpec, told("the mixer of most layers")]
    minor: Annotated[MixerSpec | None, told("the other mixer; null is the same again")] = None
    period: Annotated[
        Annotated[int, pydantic.Field(ge=2)] | None,
        told("layers of a period, the first of them a minor; 2 unless told"),
    ] = None
    ratio: Annotated[
        Annotated[str, pydantic.Field(pattern=r"^[1-9][0-9]*:[1-9][0-9]*$")] | None,
        told("instead of a period, m:r is r minors after m majors, a period of m + r layers"),
    ] = None
    phase: Annotated[
        float,
        pydantic.Field(ge=0, lt=1, description="part of a period by which all of it is later"),
    ] = 0.0

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
        pydantic.Field(min_length=1, description="a mixer for each letter"),
    ]
    pattern: Annotated[
        str, pydantic.Field(min_length=1, description="a letter a layer, over and over")
    ]

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


class Stack(Frozen):
    """Layers one by one, bottom to top."""

    type: Literal["stack"] = "stack"
    layers: Annotated[
        list[Kind], pydantic.Field(min_length=1, description="what each holds, bottom to top")
    ]

    def plan(self, layers: int) -> list[Planned]:
        if len(self.layers) != layers:
            raise ValueError(
                f"{len(self.layers)} layers are listed, layers is {layers}; make them equal"
            )
        return chain([kind.layer() for kind in self.layers])


class Stage(Kind):
    """A run of equal layers.

    At rate r they see the means of r tokens each, and what they add is held from the end of one
    group to the end of the next: causal, and 1/r of the work.
    """

    rate: Annotated[Literal[1, 2, 4, 8], told("tokens that its layers see as one")] = 1


class Hierarchical(Frozen):
    """Stages of depth, bottom to top: `depth` says how many layers each stage has, 0 at least."""

    type: Literal["hierarchical"] = "hierarchical"
    stages: Annotated[
        dict[str, Stage], pydantic.Field(min_length=1, description="by name, bottom to top")
    ]
    depth: Annotated[
        dict[str, Annotated[int, pydantic.Field(ge=0)]], told("layers of each stage, by name")
    ]

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

    reads: Annotated[
        list[str], pydantic.Field(min_length=1, description=f"names of nodes, or {INPUT}")
    ]
    join: Annotated[MergeSpec, told("how what it reads becomes one")] = schema(Mean)()


class Graph(Frozen):
    """Named layers. A node reads `input` or other nodes; the one that nobody reads is the output.

    A gate or router that joins several reads their mean.
    """

    type: Literal["graph"] = "graph"
    nodes: Annotated[
        dict[str, Node], pydantic.Field(min_length=1, description="the layers, by name")
    ]

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
    Topology = Interleave | Pattern | Parallel | Split | Stack | Hierarchical | Graph
else:
    Topology = Annotated[
        Interleave | Pattern | Parallel | Split | Stack | Hierarchical | Graph,
        pydantic.Field(discriminator="type"),
    ]
