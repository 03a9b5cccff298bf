"""ModelSpec: one architecture, fully decided, as data.

A spec says the width, the number of layers, what a layer holds and how mixers are fused over depth
(topology). It is written in YAML under `model:` and has no open decision.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import networkx as nx
import pydantic

from archsearch import reading
from archsearch.blocks.norm import RMSNorm
from archsearch.blocks.swiglu import SwiGLU
from archsearch.canonical import canonical_around, canonical_plan
from archsearch.catalogue import (
    ChannelMixerSpec,
    NormSpec,
    PartSpec,
    block_files,
    is_causal,
    schema,
)
from archsearch.graph import Around, lower, summarise
from archsearch.labelling import canonical_hash
from archsearch.layers import Planned
from archsearch.topologies import Topology
from archsearch.validation import Frozen, Positive, told


class ModelSpec(Frozen):
    """An architecture: embed, `layers` x (mixing, channel mixing) with residuals, norm, tied head.

    Pre-norm residual layers: x = x + mix(norm(x)); x = x + mlp(norm(x)).
    """

    dim: Positive = pydantic.Field(description="model width D")
    layers: Annotated[int, pydantic.Field(ge=1, le=4096, description="number of layers")]
    norm: Annotated[NormSpec, told("before every mixing and at the end")] = schema(RMSNorm)()
    mlp: Annotated[
        ChannelMixerSpec | None, told("the channel mixing of every layer; null is none")
    ] = schema(SwiGLU)()
    conv: list[Positive] = pydantic.Field(
        default=[],
        description="widths of a causal short convolution before every layer's mixing, by level: "
        "[3, 5, 7] is 3 in the lowest third of the layers, 5 in the middle, 7 in the highest",
    )
    causal: bool = pydantic.Field(
        default=True, description="false lets mixers see the future: no streaming, no language"
    )
    topology: Annotated[Topology, told("how mixers are fused over depth")]

    @pydantic.model_validator(mode="after")
    def _lays_itself_out(self) -> "ModelSpec":
        self.plan()
        if len(self.conv) > self.layers:
            raise ValueError(f"conv names {len(self.conv)} levels, layers is {self.layers}")
        return self

    @pydantic.model_validator(mode="after")
    def _no_future(self) -> "ModelSpec":
        for path, part in _parts(self.topology, "topology") if self.causal else ():
            if not is_causal(part):
                raise ValueError(
                    f"{path}: {part.type} sees the future; take a causal mixer, or set "
                    "`causal: false` in the model, which then cannot stream or predict text"
                )
        return self

    def plan(self) -> list[Planned]:
        """Every layer in its place, bottom to top, in canonical form (canonical.py)."""
        plan, levels = self.topology.plan(self.layers), len(self.conv)
        if levels:
            widths = [self.conv[i * levels // self.layers] for i in range(self.layers)]
            plan = [replace(p, conv=width) for p, width in zip(plan, widths, strict=True)]
        return canonical_plan(plan, self._around())

    def _around(self) -> Around:
        return canonical_around(Around(self.dim, self.norm, self.mlp, self.causal))

    def graph(self, plan: list[Planned] | None = None) -> nx.DiGraph:
        """The graph that is built; of other layers than its own plan where they are given."""
        return lower(self.plan() if plan is None else plan, self._around())

    def hash(self) -> str:
        """Equal exactly for isomorphic architectures, however they were written."""
        return canonical_hash(self.graph())

    def summary(self) -> str:
        """One line that tells the architecture: `2 x (mamba | retention; gate), attention`."""
        return summarise(self.plan())

    def to_yaml(self, name: str | None = None, home: str = "") -> str:
        """The spec file of this architecture, every default written out.

        Args:
            name: what it is called by.
            home: the folder of its block files, seen from the spec: "original/".
        """
        document: dict[str, Any] = {"archsearch": 1, **({"name": name} if name else {})}
        if files := block_files(self):
            document["blocks"] = [f"{home}{name}" for name in files]  # they belong beside it
        document["model"] = _type_first(self.model_dump(mode="json"))
        return reading.write(document)


def _type_first(data: Any) -> Any:
    """The same data with `type` leading every mapping: what a reader looks for first."""
    if isinstance(data, dict):
        keys = sorted(data, key=lambda key: key != "type")  # stable: the rest keeps its order
        return {key: _type_first(data[key]) for key in keys}
    return [_type_first(item) for item in data] if isinstance(data, list) else data


def _parts(value: Any, path: str) -> Iterator[tuple[str, PartSpec]]:
    """The outermost parts below a value, each with its path."""
    if isinstance(value, PartSpec):
        yield path, value
    elif isinstance(value, pydantic.BaseModel):
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list | dict):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from _parts(child, f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}")


class SpecFile(Frozen):
    """A file with one architecture."""

    archsearch: Literal[1]
    name: str | None = None
    blocks: list[str] = []
    shared: dict[str, Any] = {}
    define: dict[str, Any] = {}
    model: dict[str, Any]
