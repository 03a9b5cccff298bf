"""Every law can fail: a small block that breaks it is caught by that law, and told in its words."""

from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from archsearch.blocks import Mixer
from archsearch.case import Case, Refused
from archsearch.checking import check, smallest, variants
from archsearch.kernels.interface import Arguments
from archsearch.laws import LAWS, LawBroken, hold, statement


class Total(Mixer):
    """Lawful: y_t = w * (x_1 + ... + x_t), the state the sum so far. What follows breaks it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(dim))

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        sums = self.sums(x, state)
        return self.read(sums, x) * self.w, sums[:, -1]

    def read(self, sums: Tensor, x: Tensor) -> Tensor:
        return sums

    def sums(self, x: Tensor, state: Any) -> Tensor:
        y = x.float().cumsum(1).to(x.dtype) if x.dtype == torch.bfloat16 else x.cumsum(1)
        return y if state is None else y + state[:, None]


class Wider(Total):
    def forward(self, x, state=None):
        y, state = super().forward(x, state)
        return torch.cat((y, y), dim=-1), state


class Dropout(Total):
    def forward(self, x, state=None):
        y, state = super().forward(x, state)
        return nn.functional.dropout(y, 0.5, training=True), state


class BatchNorm(Total):
    def sums(self, x, state):
        return super().sums(x - x.mean(0), state)


class LooksAhead(Total):
    def sums(self, x, state):
        return super().sums(x, state) + torch.cat((x[:, 1:], x[:, -1:]), dim=1)


class OnlyThePast(Total):
    def read(self, sums, x):
        return sums - x if x.shape[1] == 1 else torch.cat((sums[:, :1] - x[:, :1], sums[:, :-1]), 1)


class SaysItLooksAhead(Total):
    causal = False

    def forward(self, x, state=None):
        return super().forward(x)[0], None


class TakesAState(Total):
    """Its y_t is the sum of all."""

    causal = False

    def read(self, sums, x):
        return sums[:, -1:].expand_as(sums)


class Forgets(Total):
    def sums(self, x, state):
        return super().sums(x, None)


class Detaches(Total):
    def sums(self, x, state):
        return super().sums(x, None if state is None else state.detach())


class Hoards(Total):
    def forward(self, x, state=None):
        y, after = super().forward(x, None if state is None else state[0])
        return y, (after, x if state is None else torch.cat((state[1], x), dim=1))


class SaysItGrows(Total):
    grows = True


class Divides(Total):
    def read(self, sums, x):
        return sums / sums.square().sum(-1, keepdim=True).sqrt()


class TwoBackends(Total):
    def read(self, sums, x):
        return sums * (1.0 if Arguments("total").backend("auto", x) == "reference" else 1.01)


class NotSaved(Total):
    drawn: Tensor

    def __init__(self, dim):
        super().__init__(dim)
        self.register_buffer("drawn", torch.rand(dim), persistent=False)

    def sums(self, x, state):
        return super().sums(x * self.drawn, state)


class DeadWeight(Total):
    def __init__(self, dim):
        super().__init__(dim)
        self.unused = nn.Linear(dim, dim)


class NeedsFloat32(Total):
    def sums(self, x, state):
        if x.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for BFloat16")
        return super().sums(x, state)


class Coarse(Total):
    def sums(self, x, state):
        return super().sums(x, state) * (1.5 if x.dtype == torch.bfloat16 else 1.0)


class Asks(Total):
    def sums(self, x, state):
        return super().sums(x, state) if x.sum().item() < 1e9 else x


class Leaner(Total):
    def forward(self, x, state=None):
        y, state = super().forward(x, state)
        return y, state[:, :1].expand_as(state) if x.is_meta else state.double()


BROKEN: dict[type[Mixer], tuple[str, set[str]]] = {  # the law it breaks, and what that entails
    Wider: ("shape", {"state_gradients", "parameters"}),
    Dropout: ("determinism", {*LAWS} - {"shape", "response", "state_size", "finiteness", "parameters", "tracing"}),
    BatchNorm: ("batch_rows", set()),
    LooksAhead: ("causality", {"streaming", "state_gradients"}),
    SaysItLooksAhead: ("causality", {"streaming"}),
    TakesAState: ("streaming", set()),
    OnlyThePast: ("response", set()),
    Forgets: ("streaming", {"state_gradients"}),
    Detaches: ("state_gradients", set()),
    Hoards: ("state_size", set()),
    SaysItGrows: ("state_size", set()),
    Divides: ("finiteness", set()),
    TwoBackends: ("backends", set()),
    NotSaved: ("saving", {"low_precision"}),
    DeadWeight: ("parameters", set()),
    NeedsFloat32: ("low_precision", set()),
    Coarse: ("low_precision", set()),
    Asks: ("tracing", set()),
    Leaner: ("tracing", set()),
}  # fmt: skip


def test_a_lawful_block_holds_every_law() -> None:
    for law in LAWS:
        hold(law, Case(Total))


@pytest.mark.parametrize("cls", BROKEN, ids=lambda c: c.__name__)
def test_a_broken_block_is_caught_by_its_law(cls: type[Mixer]) -> None:
    caught = []
    for law in LAWS:
        try:
            hold(law, Case(cls))
        except LawBroken as broken:
            caught.append(broken.law)
    law, entailed = BROKEN[cls]
    assert caught[0] == law
    assert set(caught) == {law, *entailed}


def test_every_law_has_a_block_that_breaks_it() -> None:
    assert {law for law, _ in BROKEN.values()} == set(LAWS)
    assert all(statement(law).endswith((".", "(float32).")) for law in LAWS)


def test_a_broken_law_is_told_with_its_smallest_case() -> None:
    """The case that a person would have written: the fewest tokens that show a look ahead."""
    broken = smallest("causality", LooksAhead)
    assert broken is not None
    case = broken.case
    assert (case.dim, case.batch, case.length, case.cuts, case.seed) == (2, 1, 2, [1], 0)
    told = str(broken)
    assert told.startswith("causality: outputs before token 1, of inputs that differ from there on")
    assert "law   y[:, :t] does not change when x[:, t:] does." in told
    assert "case  LooksAhead, dim 2, batch 1, length 2, splits [1], float64, seed 0" in told
    assert " at [0, 0, " in told
    assert smallest("causality", Total) is None


class Optional(Total):
    """Leaks with one value of one option."""

    def __init__(self, dim: int, *, look: Literal["back", "ahead"] = "back", twice: bool = False):
        super().__init__(dim)
        self.look = look

    def sums(self, x, state):
        y = super().sums(x, state)
        return y if self.look == "back" else y + torch.cat((x[:, 1:], x[:, -1:]), dim=1)


def test_every_value_of_an_option_is_tried() -> None:
    keywords = [make.keywords for make in variants(Optional)]  # type: ignore[attr-defined]
    assert keywords == [{}, {"look": "ahead"}, {"twice": True}]
    broken = {v.law: v.broken for v in check(Optional) if v.broken is not None}
    assert set(broken) == {"causality", "streaming", "state_gradients"}
    assert "Optional(look=ahead), dim 2, batch 1, length 2" in str(broken["causality"].case)


def test_a_refused_size_breaks_no_law() -> None:
    class Even(Total):
        def __init__(self, dim: int) -> None:
            if dim % 2:
                raise ValueError(f"even: dim must be even, got {dim}")
            super().__init__(dim)

    with pytest.raises(Refused, match="dim must be even, got 3"):
        hold("shape", Case(Even, dim=3))
    assert all(verdict.broken is None for verdict in check(Even))
    with pytest.raises(Refused, match="even"):
        hold("shape", Case(partial(Even), dim=5))
