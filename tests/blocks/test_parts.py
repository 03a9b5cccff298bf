"""What is special about single parts: births, sizes refused, equations."""

import bisect
import inspect
from functools import partial
from typing import Any

import pytest
import torch

from archsearch.blocks import Merge, Mixer
from archsearch.blocks.attention import Attention, alibi_slopes
from archsearch.blocks.decay import FixedDecay, LearnedDecay, SelectiveDecay, retnet_decay
from archsearch.blocks.gate import Gated, GateKind, NormKind
from archsearch.blocks.gla import GLA
from archsearch.blocks.mamba import Mamba
from archsearch.blocks.merge import Concat, Gate, Route, Sum
from archsearch.blocks.mlp import MLP
from archsearch.blocks.retention import Retention
from archsearch.blocks.rotary import rope_frequencies, rotate
from archsearch.blocks.short_conv import ShortConv
from archsearch.blocks.swiglu import SwiGLU


@pytest.mark.parametrize("per", ["head", "channel"])
@pytest.mark.parametrize("decay", [SelectiveDecay, LearnedDecay])
def test_a_selective_retention_is_born_a_retnet(decay: type, per: str) -> None:
    """MATH section 4: untrained, with all else equal, the two blocks compute the same."""
    options = {"per": per} if decay is SelectiveDecay else {}
    retnet = Retention(32, heads=4).double()
    selective = Retention(32, heads=4, decay=partial(decay, **options)).double()
    missing, unexpected = selective.load_state_dict(retnet.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("decay.") for name in missing)
    x = torch.randn(2, 100, 32, dtype=torch.float64)
    y, (S, *_) = retnet(x)
    y_selective, (S_selective, *_) = selective(x)
    torch.testing.assert_close(y_selective, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(S_selective, S, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # and leaves that point once its weights move
        for parameter in selective.decay.parameters():
            parameter.add_(0.5)
    assert not torch.allclose(selective(x)[0], y, atol=1e-3)


def test_retnet_decays_and_half_lives() -> None:
    gamma = retnet_decay(8).double().exp()
    torch.testing.assert_close(
        gamma, 1 - 2.0 ** (-5 - torch.arange(8.0).double()), rtol=1e-7, atol=0
    )
    for decay in (LearnedDecay, SelectiveDecay):
        log_decay, _ = decay(8, 3, 4, half_life=10.0)(torch.zeros(1, 1, 8))
        kept = (log_decay.flatten() * torch.tensor([10.0, 20.0, 40.0])).exp()
        torch.testing.assert_close(kept, torch.full((3,), 0.5))
    spaced = FixedDecay(8, 4, 2, schedule="log_spaced").log_decay.exp()
    torch.testing.assert_close(spaced[[0, 3]], torch.tensor([1 - 1 / 32, 1 - 1 / 512]))


def test_every_head_may_have_a_range_of_half_lives() -> None:
    decay = SelectiveDecay(8, 3, 4, per="channel", half_life=10.0, spread=8.0)
    log_decay, _ = decay(torch.zeros(1, 1, 8))
    half_lives = torch.tensor([[10.0], [20.0], [40.0]]) * 8 ** torch.linspace(0, 1, 4)
    torch.testing.assert_close((log_decay[0, 0] * half_lives).exp(), torch.full((3, 4), 0.5))
    refused: list[dict[str, Any]] = [{"spread": 2.0}, {"spread": 0.5, "per": "channel"}]
    for options in refused:
        with pytest.raises(
            ValueError, match="selective decay: spread must be at least 1, and is of"
        ):
            SelectiveDecay(8, 2, 4, **options)


def test_write_and_reset_gates() -> None:
    x = torch.randn(2, 5, 8)
    log_decay, write = SelectiveDecay(8, 2, 4, write="tied", per="channel")(x)
    assert write is not None
    torch.testing.assert_close(write, 1 - log_decay.exp())
    closed = SelectiveDecay(8, 2, 4, reset=True)
    open_decay, _ = SelectiveDecay(8, 2, 4)(x)
    torch.testing.assert_close(closed(x)[0], open_decay, atol=0.5, rtol=0)  # open at birth
    with torch.no_grad():
        closed.reset.bias.fill_(-80.0)
    assert (closed(x)[0] < -50).all()  # and wipes the state when it closes


def test_rotation_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    w = rope_frequencies(8).double()

    def score(p: float, s: float) -> torch.Tensor:
        return (rotate(q, torch.tensor([p]), w) * rotate(k, torch.tensor([s]), w)).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-9, atol=1e-9)
    assert not torch.isclose(score(3, 1), score(3, 2))


def test_a_window_is_attention_over_the_last_tokens() -> None:
    """Layer by layer exact: token t sees the `window` tokens that end with it."""
    full = Attention(16, heads=2, positions="none").double()
    windowed = Attention(16, heads=2, positions="none", window=3).double()
    windowed.load_state_dict(full.state_dict())
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    y, _ = windowed(x)
    for t in range(9):
        expected, _ = full(x[:, max(0, t - 2) : t + 1])
        torch.testing.assert_close(y[:, t], expected[:, -1])


@pytest.mark.parametrize(("dilation", "sinks"), [(1, 0), (3, 0), (1, 2), (3, 2)])
def test_a_pattern_is_softmax_over_what_it_lists(dilation: int, sinks: int) -> None:
    """Written out token by token: the window's every `dilation`-th one, and the sinks, once each."""
    options = {"heads": 2, "positions": "none", "window": 3}
    block = Attention(16, **options, dilation=dilation, sinks=sinks).double()
    x = torch.randn(1, 14, 16, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (2, 8)) for part in block.qkv(x)[0].chunk(3, dim=-1))
    for t in range(14):
        seen = {t - i * dilation for i in range(3)} | set(range(sinks))
        seen = sorted(s for s in seen if 0 <= s <= t)
        weights = torch.einsum("hk,shk->hs", q[t], k[seen]).div(8**0.5).softmax(-1)
        want = block.out(torch.einsum("hs,shk->hk", weights, v[seen]).flatten())
        torch.testing.assert_close(block(x)[0][0, t], want)


def test_alibi_subtracts_slope_times_distance() -> None:
    torch.testing.assert_close(alibi_slopes(4), torch.tensor([0.25, 0.0625, 0.015625, 0.00390625]))
    # For six heads: those of four, then the first and third of eight.
    torch.testing.assert_close(alibi_slopes(6)[4:], 2.0 ** -torch.tensor([1.0, 3.0]))
    block = Attention(16, heads=2, positions="alibi").double()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    q, k, v = (p.unflatten(-1, (2, 8)).transpose(1, 2) for p in block.qkv(x).chunk(3, dim=-1))
    distance = torch.arange(9)[:, None] - torch.arange(9)
    scores = q @ k.mT / 8**0.5 - alibi_slopes(2).double()[:, None, None] * distance
    weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    torch.testing.assert_close(block(x)[0], block.out((weights @ v).transpose(1, 2).flatten(-2)))


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_learned_positions_add_a_number_for_the_distance(softcap: float | None) -> None:
    """Each distance below 16 its own, then 16 that widen, the last from 113 on."""
    starts = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    block = Attention(16, heads=2, positions="learned", softcap=softcap).double()
    x = torch.randn(1, 150, 16, dtype=torch.float64)
    q, k, v = (p.unflatten(-1, (2, 8)).transpose(1, 2) for p in block.qkv(x).chunk(3, dim=-1))
    scores = q @ k.mT / 8**0.5
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    for t in range(150):
        for s in range(t + 1):
            scores[..., t, s] += block.bias[:, bisect.bisect(starts, t - s) - 1]
    future = torch.ones(150, 150, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    torch.testing.assert_close(block(x)[0], block.out((weights @ v).transpose(1, 2).flatten(-2)))


def test_scores_are_capped_and_heads_normed() -> None:
    x = 100 * torch.randn(1, 9, 16, dtype=torch.float64)
    plain = Attention(16, heads=2).double()
    capped = Attention(16, heads=2, softcap=1e6).double()
    capped.load_state_dict(plain.state_dict())
    torch.testing.assert_close(capped(x)[0], plain(x)[0], rtol=1e-4, atol=1e-4)  # tanh(z) is z
    flat = Attention(16, heads=2, softcap=1e-6, positions="none").double()
    flat.load_state_dict(plain.state_dict())  # all scores alike: the mean over the past
    means = flat.qkv(x)[..., 32:].cumsum(1) / torch.arange(1, 10)[:, None]
    torch.testing.assert_close(flat(x)[0], flat.out(means), rtol=1e-4, atol=1e-4)
    normed = Attention(16, heads=2, qk_norm=True).double()
    with torch.no_grad():
        before = normed(x)[0]
        normed.qkv.weight[:32] *= 7  # of q and k, whose size the norm takes out
    torch.testing.assert_close(normed(x)[0], before, rtol=1e-4, atol=1e-4)


def test_heads_share_decays_and_keys() -> None:
    torch.testing.assert_close(
        FixedDecay(8, 4, 2, groups=2).log_decay, retnet_decay(2).repeat_interleave(2)
    )
    for decay in (LearnedDecay, SelectiveDecay):
        log_decay, _ = decay(8, 4, 2, groups=2, half_life=5.0)(torch.randn(1, 3, 8))
        assert torch.equal(log_decay[..., 0], log_decay[..., 1])
        assert not torch.equal(log_decay[..., 1], log_decay[..., 2])
    shared, own = (Retention(32, heads=4, key_heads=n).double() for n in (2, 4))
    q, k, v = shared.qkv.weight.split(shared.widths)
    q, k = (w.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for w in (q, k))
    weights = shared.state_dict() | {"qkv.weight": torch.cat((q, k, v))}
    own.load_state_dict(weights)
    x = torch.randn(2, 11, 32, dtype=torch.float64)
    torch.testing.assert_close(shared(x)[0], own(x)[0])


def test_a_learned_state_is_where_a_sequence_starts() -> None:
    block = Retention(16, heads=2, initial="learned").double()
    zeros = Retention(16, heads=2).double()
    zeros.load_state_dict(block.state_dict(), strict=False)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert torch.equal(block(x)[0], zeros(x)[0])  # at birth
    assert block.start is not None
    with torch.no_grad():
        block.start.normal_()
    start = (block.start.expand(2, -1, -1, -1), None, torch.zeros((), dtype=torch.long))
    torch.testing.assert_close(block(x)[0], zeros(x, start)[0])


def test_grouped_heads_share_keys() -> None:
    grouped = Attention(16, heads=4, kv_heads=2).double()
    full = Attention(16, heads=4).double()
    q, k, v = grouped.qkv.weight.split((16, 8, 8))
    k, v = (w.unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1) for w in (k, v))
    full.load_state_dict({"qkv.weight": torch.cat((q, k, v)), "out.weight": grouped.out.weight})
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(grouped(x)[0], full(x)[0])


@pytest.mark.parametrize("gate", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("norm", ["rms", "group", "none"])
def test_heads_are_normed_then_gated(norm: NormKind, gate: GateKind) -> None:
    stage = Gated()
    stage.read_by(5, 2, 8, norm, gate)
    stage.double()
    x, o = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 2, 4).double()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(torch.randn_like(parameter))
    w = dict(stage.named_parameters())
    centred = o - o.mean(-1, keepdim=True) if norm == "group" else o
    want = centred if norm == "none" else centred / centred.square().mean(-1, keepdim=True).sqrt()
    if norm == "rms":  # a head's w, shared by heads
        want = want * w["norm.weight"]
    want = want.flatten(-2)
    if norm == "group":
        want = want * w["norm.weight"] + w["norm.bias"]
    if gate != "none":
        z = x @ w["gate.weight"].T
        want = want * torch.sigmoid(z) * (z if gate == "silu" else 1)
    torch.testing.assert_close(stage.read(o, x), want @ w["out.weight"].T, rtol=1e-4, atol=1e-4)


def test_mamba_is_born_as_published() -> None:
    mamba = Mamba(32, state=8)
    torch.testing.assert_close(mamba.A_log.exp(), torch.arange(1.0, 9).repeat(64, 1))
    delta = torch.nn.functional.softplus(mamba.step.bias)
    assert delta.min() >= 1e-4 and delta.max() <= 0.1 + 1e-6
    assert mamba.step.in_features == 2  # ceil(32 / 16)


@pytest.mark.parametrize("merge", list(Merge.members.values()), ids=lambda m: m.name)
def test_merges_treat_branches_alike(merge: type) -> None:
    """Branches of one kind are told apart by weights only: gradients reach every branch."""
    x = torch.randn(2, 5, 8)
    branches = [torch.randn(2, 5, 8, requires_grad=True) for _ in range(3)]
    y = merge(8, 3)(x, *branches)
    assert y.shape == x.shape
    for gradient in torch.autograd.grad(y.square().sum(), branches):
        assert gradient.abs().min() > 0


def test_merge_equations() -> None:
    x, a, b = torch.randn(3, 2, 5, 8)
    torch.testing.assert_close(Sum(8, 2)(x, a, b), a + b)
    route = Route(8, 2, temperature=0.5)
    p = torch.softmax(route.read(x) / 0.5, -1)
    torch.testing.assert_close(route(x, a, b), p[..., :1] * a + p[..., 1:] * b)
    hard = Route(8, 2, temperature=0.5, hard=True)
    hard.load_state_dict(route.state_dict())
    first = p[..., :1] > 0.5
    y = hard(x, a, b)
    torch.testing.assert_close(y, torch.where(first, a, b))
    soft, straight = (
        torch.autograd.grad(z.sum(), r.read.weight)[0]
        for z, r in ((route(x, a, b), route), (y, hard))
    )
    torch.testing.assert_close(straight, soft)
    gate = Gate(8, 2, per="channel")
    torch.testing.assert_close(gate(x, a, b), (a + b) / 2)  # sigmoid(0)
    concat = Concat(8, 2)
    torch.testing.assert_close(concat(x, a, b), torch.cat((a, b), -1) @ concat.project.weight.T)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Retention(64, heads=5), r"heads \(5\) must divide dim \(64\); allowed: 1, 2, 4"),
        (lambda: Retention(12, heads=4), r"key width of a head, dim / heads = 3, must be even"),
        (lambda: Retention(64, expand=0), r"retention: expand must be positive, got 0"),
        (lambda: Attention(64, heads=3), r"attention: heads \(3\) must divide dim \(64\)"),
        (lambda: Attention(64, kv_heads=3), r"kv_heads \(3\) must divide heads \(4\)"),
        (lambda: Attention(64, window=0), r"attention: window must be positive, got 0"),
        (lambda: Attention(12, heads=4), r"width of a head, dim / heads = 3, must be even"),
        (lambda: Attention(8, sinks=2), r"dilation \(1\) and sinks \(2\) belong to a window"),
        (
            lambda: Attention(8, window=2, sinks=-1),
            r"attention: sinks must not be negative, got -1",
        ),
        (lambda: Attention(8, softcap=0.0), r"attention: softcap must be positive, got 0"),
        (lambda: Retention(64, key_heads=3), r"retention: key_heads \(3\) must divide heads \(4\)"),
        (lambda: FixedDecay(8, 4, 2, groups=3), r"fixed decay: groups \(3\) must divide heads"),
        (lambda: Mamba(8, state=0), r"mamba: state must be positive, got 0"),
        (lambda: ShortConv(8, width=0), r"short_conv: width must be from 1 to 8, got 0"),
        (lambda: ShortConv(8, width=9), r"short_conv: width must be from 1 to 8, got 9"),
        (lambda: GLA(1, heads=1), r"gla: expand_k \(0.5\) times dim \(1\) is less than one key"),
        (lambda: SwiGLU(8, expand=-1.0), r"swiglu: expand must be positive, got -1"),
        (lambda: MLP(8, expand=0.0), r"mlp: expand must be positive, got 0"),
        (lambda: Route(8, 2, temperature=0.0), r"route: temperature must be positive, got 0"),
        (lambda: LearnedDecay(8, 2, 4, half_life=-1.0), r"learned decay: half_life must be pos"),
    ],
)
def test_impossible_sizes_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def options(cls: type) -> set[str]:
    return set(inspect.signature(cls).parameters)


@pytest.mark.parametrize("cls", Mixer.members.values(), ids=lambda c: c.name)
def test_what_mixes_by_queries_keys_and_values_takes_a_convolution(cls: type[Mixer]) -> None:
    assert {"conv", "shift"} & options(cls) or not hasattr(cls(16), "qkv")  # H3's is its shift


CONVOLVED = [cls for cls in Mixer.members.values() if "conv" in options(cls)]


@pytest.mark.parametrize("cls", CONVOLVED, ids=lambda c: c.name)
def test_a_convolution_is_eight_wide_at_most(cls: type[Mixer]) -> None:
    for width in (-1, 9):
        with pytest.raises(ValueError, match=f"{cls.name}: conv must be from 1 to 8.* {width}"):
            cls(16, conv=width)
    assert any(isinstance(part, ShortConv) for part in cls(16, conv=8).modules())


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match=r"'mamba' is taken by archsearch\.blocks\.mamba\.Mamba"):
        type("Other", (Mixer,), {"__module__": "elsewhere"}, name="mamba")
    assert Mixer.members["mamba"] is Mamba
