"""ModelSpec: one architecture, fully decided, as data.

A spec says the width, the number of layers, what a layer holds and how mixers are fused over depth
(topology). It is written in YAML under `model:` and has no open decision. Each topology lays itself
out as one LayerPlan per layer; archsearch.graph turns the plans into a graph.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import yaml

from archsearch import graph, plugins, reading, validation
from archsearch.blocks.merge import Sum
from archsearch.blocks.norm import RMSNorm
from archsearch.blocks.swiglu import SwiGLU
from archsearch.catalogue import (
    ChannelMixerSpec,
    MergeSpec,
    MixerSpec,
    NormSpec,
    block_files,
    schema,
)
from archsearch.validation import Frozen

Positive = Annotated[int, pydantic.Field(ge=1)]


class Layer(Frozen):
    """What mixes time in one layer: branches, joined by a merge where there are several."""

    branches: Annotated[list[MixerSpec], pydantic.Field(min_length=1)]
    merge: MergeSpec = schema(Sum)()
    branch_norm: Literal["none", "rms"] = "rms"


class Interleave(Frozen):
    """One mixer a layer: `minor` once every `period` layers, `major` elsewhere.

    The layers i with i mod period = floor(phase * period) are minor; phase in [0, 1).
    """

    type: Literal["interleave"] = "interleave"
    major: MixerSpec
    minor: MixerSpec | None = None
    period: Annotated[int, pydantic.Field(ge=2)] = 2
    phase: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0

    def plan(self, layers: int) -> list[Layer]:
        at = math.floor(self.phase * self.period)
        minor = self.major if self.minor is None else self.minor
        return [
            Layer(branches=[minor if i % self.period == at else self.major]) for i in range(layers)
        ]


class Parallel(Layer):
    """Every layer runs several mixers on the same input and merges them."""

    type: Literal["parallel"] = "parallel"

    def plan(self, layers: int) -> list[Layer]:
        fields = {name: getattr(self, name) for name in Layer.model_fields}
        return [Layer(**fields)] * layers


class Stage(Frozen):
    """A run of equal layers: a mixer, or a parallel fusion."""

    mixer: MixerSpec | None = None
    parallel: Layer | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> "Stage":
        if (self.mixer is None) == (self.parallel is None):
            raise ValueError("a stage says either `mixer:` or `parallel:`, one of them")
        return self

    def layer(self) -> Layer:
        if self.parallel is not None:
            return self.parallel
        assert self.mixer is not None
        return Layer(branches=[self.mixer])


class Hierarchical(Frozen):
    """Stages of depth, bottom to top: `depth` says how many layers each stage has."""

    type: Literal["hierarchical"] = "hierarchical"
    stages: Annotated[dict[str, Stage], pydantic.Field(min_length=1)]
    depth: dict[str, Positive]

    @pydantic.model_validator(mode="after")
    def _same_names(self) -> "Hierarchical":
        if list(self.stages) != list(self.depth):
            raise ValueError(
                f"depth names {list(self.depth)}, stages are {list(self.stages)}; "
                "both list the same names in the same order"
            )
        return self

    def plan(self, layers: int) -> list[Layer]:
        return [
            stage.layer() for name, stage in self.stages.items() for _ in range(self.depth[name])
        ]


if TYPE_CHECKING:
    Topology = Interleave | Parallel | Hierarchical
else:
    Topology = Annotated[Interleave | Parallel | Hierarchical, pydantic.Field(discriminator="type")]


class ModelSpec(Frozen):
    """An architecture: embed, `layers` x (mixing, channel mixing) with residuals, norm, tied head.

    Pre-norm residual layers: x = x + mix(norm(x)); x = x + mlp(norm(x)).
    """

    dim: Positive = pydantic.Field(description="model width D")
    layers: Positive = pydantic.Field(description="number of layers")
    norm: NormSpec = schema(RMSNorm)()
    mlp: ChannelMixerSpec | None = schema(SwiGLU)()
    topology: Topology

    @pydantic.model_validator(mode="after")
    def _depth_adds_up(self) -> "ModelSpec":
        if isinstance(self.topology, Hierarchical):
            total = sum(self.topology.depth.values())
            if total != self.layers:
                raise ValueError(
                    f"depth adds up to {total} layers, layers is {self.layers}; make them equal"
                )
        return self

    def plan(self) -> list[Layer]:
        """The mixing part of every layer, bottom to top."""
        return self.topology.plan(self.layers)

    def hash(self) -> str:
        """Equal for isomorphic architectures, however they were written."""
        return graph.canonical_hash(graph.lower(self))

    def summary(self) -> str:
        """One line that tells the architecture: `2 x (retention | mamba; gate), attention`."""
        return graph.summarise(self)

    def to_yaml(self, name: str | None = None) -> str:
        """The spec file of this architecture, every default written out."""
        document: dict[str, Any] = {"archsearch": 1, **({"name": name} if name else {})}
        if files := block_files(self):
            document["blocks"] = list(files)  # by name: they belong beside the spec
        document["model"] = _type_first(self.model_dump(mode="json"))
        return yaml.safe_dump(document, sort_keys=False)


def _type_first(data: Any) -> Any:
    """The same data with `type` leading every mapping: what a reader looks for first."""
    if isinstance(data, dict):
        keys = sorted(data, key=lambda key: key != "type")  # stable: the rest keeps its order
        return {key: _type_first(data[key]) for key in keys}
    return [_type_first(item) for item in data] if isinstance(data, list) else data


class SpecFile(Frozen):
    """A file with one architecture."""

    archsearch: Literal[1]
    name: str | None = None
    blocks: list[str] = []
    model: ModelSpec


def load_spec(path: str | Path) -> ModelSpec:
    """Reads a spec file. SpecError names every problem with file:line:column, path and remedy."""
    document = reading.read(path)
    plugins.load_named(document, Path(path).absolute().parent)
    return validation.load(SpecFile, document).model
