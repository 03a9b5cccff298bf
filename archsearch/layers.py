"""A layer: what mixes time in it, and where it stands among the others."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic

from archsearch.blocks.merge import Mean
from archsearch.catalogue import MergeSpec, MixerSpec, schema
from archsearch.validation import Frozen, told

Share = Annotated[float, pydantic.Field(gt=0, le=1)]


class Branches(Frozen):
    """What mixes time in one layer: branches, joined by a merge where there are several."""

    branches: Annotated[
        list[MixerSpec],
        pydantic.Field(min_length=1, description="the mixers, all of them on the same input"),
    ]
    merge: Annotated[MergeSpec, told("how several become one")] = schema(Mean)()
    branch_norm: Annotated[Literal["none", "rms"], told("of every branch before the merge")] = "rms"


class Division(Frozen):
    """Mixers that divide the width D.

    ratio  of two parts the first one's share, round(ratio * D) channels; or a list of every part's
           share, which add up to one: part i ends at round((ratio_0 + ... + ratio_i) * D)

    over: channels   each part reads and writes channels of its own
          heads      each part reads all channels by a projection to its width, as a head does; a
                     projection of both gives the layer's output
    """

    parts: Annotated[list[MixerSpec], pydantic.Field(min_length=1, description="the mixers")]
    ratio: Annotated[
        Share | list[Share], told("the first one's share of the width, or the share of each")
    ] = 0.5
    over: Annotated[
        Literal["channels", "heads"],
        told("channels of their own, or heads, which read all channels by a projection"),
    ] = "channels"

    @pydantic.model_validator(mode="after")
    def _a_share_each(self) -> "Division":
        shares = self.shares
        if len(shares) != len(self.parts) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"split: ratio {self.ratio} of {len(self.parts)} parts; give one number for two "
                "parts, or a share for each that add up to 1"
            )
        return self

    @property
    def shares(self) -> list[float]:
        """Of every part."""
        return self.ratio if isinstance(self.ratio, list) else [self.ratio, 1 - self.ratio]

    def widths(self, dim: int) -> list[int]:
        """Channels of the parts; ValueError where one would have none."""
        ends = [round(share * dim) for share in itertools.accumulate(self.shares)]
        widths = [b - a for a, b in itertools.pairwise((0, *ends))]
        if min(widths) < 1:
            raise ValueError(
                f"split: ratio {self.ratio} of dim {dim} leaves one part without a channel; "
                f"take shares of at least {1 / dim:.3g}"
            )
        return widths


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


class Kind(Frozen):
    """What a layer holds: a mixer, a parallel fusion or a split."""

    mixer: Annotated[MixerSpec | None, told("one mixer")] = None
    parallel: Annotated[Branches | None, told("several mixers, merged")] = None
    split: Annotated[Division | None, told("two mixers that divide the width")] = None

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
