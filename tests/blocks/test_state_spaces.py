"""State spaces against their recurrences written the slow way, and births against the papers' figures."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archsearch.blocks.block import Mixer
from archsearch.blocks.h3 import H3
from archsearch.blocks.mamba import Mamba
from archsearch.blocks.s4 import S4, diagonalised, hippo_legs
from archsearch.blocks.s4d import S4D, Discretisation
from archsearch.kernels import long_conv

B, T, DIM, N = 2, 70, 6, 8
EYE = torch.eye(N, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def tokens() -> Tensor:
    return torch.randn(B, T, DIM, dtype=torch.float64)


def double(block: Any) -> Any:
    """In float64, every parameter off its birth value."""
    with torch.no_grad():
        for parameter in block.double().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block


def with_conjugates(halves: Tensor) -> Tensor:
    """All N complex numbers of N / 2 pairs, (.., N / 2, 2) -> (.., N)."""
    z = torch.complex(*halves.unbind(-1))
    return torch.cat((z, z.conj()), dim=-1)


def continuous(ssm) -> tuple[Tensor, Tensor, Tensor]:
    """A (D, N, N), B and C (D, N), complex: the system as the paper writes it, pairs in full."""
    A = with_conjugates(torch.stack((-ssm.log_rate.exp(), ssm.frequency), dim=-1)).diag_embed()
    C = with_conjugates(ssm.C)
    if not hasattr(ssm, "P"):
        return A, torch.ones_like(C), C
    P = with_conjugates(ssm.P)
    return A - P[:, :, None] * P.conj()[:, None], with_conjugates(ssm.B), C


def filtered(ssm, x: Tensor, rule: str) -> Tensor:
    """The systems' outputs over x (B, T, D), one step at a time."""
    A, B, C = continuous(ssm)
    delta = ssm.log_step.exp()[:, None, None]
    if rule == "zoh":  # the integral of exp(s A) B over a step, A being invertible
        step = torch.matrix_exp(delta * A)
        write = torch.linalg.solve(A, (step - EYE) @ B[..., None])
    else:
        step = torch.linalg.solve(EYE - delta / 2 * A, EYE + delta / 2 * A)
        write = torch.linalg.solve(EYE - delta / 2 * A, delta * B[..., None])
    h, outputs = torch.zeros_like(write).expand(len(x), -1, -1, -1), []
    for x_t in x.unbind(1):
        h = step @ h + write * x_t[..., None, None]
        outputs.append((C[..., None, :] @ h)[..., 0, 0])
    y = torch.stack(outputs, dim=1)
    close(y.imag, torch.zeros_like(y.imag))
    return y.real + ssm.D * x


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_h3_step_by_step(heads: int | None, rule: Discretisation) -> None:
    block, x = double(H3(DIM, heads=heads, state=N, shift=3, discretisation=rule)), tokens()
    H = heads or DIM
    q, k, v = block.qkv(x).chunk(3, dim=-1)
    past = F.pad(k, (0, 0, 2, 0))
    k = block.shift.bias + sum(block.shift.filter[:, w] * past[:, w : w + T] for w in range(3))
    q, k, v = (z.unflatten(-1, (H, -1)) for z in (q, k, v))
    written = torch.einsum("bthi,bthj->ijbth", k, v)
    S = torch.stack([filtered(block.ssm, z, rule) for z in written.flatten(0, 1)])
    o = torch.einsum("bthi,ijbth->bthj", q, S.view_as(written))
    close(block(x)[0], block.out(o.flatten(-2)))


@pytest.mark.parametrize("rule", ["euler", "zoh", "bilinear"])
@pytest.mark.parametrize("longer", [0.0, 3.0], ids=["steps as born", "long steps"])
def test_mamba_step_by_step(rule: Any, longer: float) -> None:
    """With long steps the bilinear factor is negative for some states, and changes its sign."""
    block, x = double(Mamba(DIM, state=N, conv=0, discretisation=rule)), tokens()
    with torch.no_grad():
        block.step.bias.add_(longer)
    x_t, z = block.into(x).chunk(2, dim=-1)
    rank, write, read = block.select(x_t).split(block.sizes, dim=-1)
    delta = F.softplus(block.step(rank))[..., None]
    A = -block.A_log.exp()
    r = delta * A
    a = (1 + r / 2) / (1 - r / 2) if rule == "bilinear" else r.exp()
    b = {"euler": delta + 0 * r, "zoh": (r.exp() - 1) / A, "bilinear": delta / (1 - r / 2)}[rule]
    assert (a.amin() < 0 < a.amax()) == (rule == "bilinear" and longer > 0)
    h, outputs = torch.zeros(B, 2 * DIM, N, dtype=torch.float64), []
    for t in range(T):
        h = a[:, t] * h + b[:, t] * write[:, t, None] * x_t[:, t, :, None]
        outputs.append((h * read[:, t, None]).sum(-1) + block.D * x_t[:, t])
    y, (state, _) = block(x)
    close(y, block.out(torch.stack(outputs, dim=1) * F.silu(z)))
    close(state, h)


SYSTEMS = {
    "s4": (lambda **k: S4(DIM, state=N, **k), "bilinear"),
    "s4d zoh": (lambda **k: S4D(DIM, state=N, **k), "zoh"),
    "s4d bilinear": (lambda **k: S4D(DIM, state=N, discretisation="bilinear", **k), "bilinear"),
}
each_system = pytest.mark.parametrize(("build", "rule"), SYSTEMS.values(), ids=SYSTEMS)


@each_system
@pytest.mark.parametrize("step", ["channel", "layer"])
def test_step_by_step(build, rule: str, step: str) -> None:
    block, x = double(build(step=step)), tokens()
    assert block.ssm.log_step.numel() == (DIM if step == "channel" else 1)
    y = F.gelu(filtered(block.ssm, x, rule))
    close(block(x)[0], F.glu(F.linear(y, block.out[1].weight, block.out[1].bias)))


@each_system
def test_the_convolution_is_the_recurrence(build, rule: str) -> None:
    block, x, state, pieces = double(build()), tokens(), None, []
    for x_t in x.split(1, dim=1):
        y, state = block.ssm(x_t, state)
        pieces.append(y)
    kernel = block.ssm.kernel(T)
    assert kernel.shape == (DIM, T)
    close(long_conv(x, kernel) + block.ssm.D * x, torch.cat(pieces, dim=1))


@each_system
def test_half_precision_is_summed_in_float32(build, rule: str) -> None:
    block, x = build(), torch.randn(B, 300, DIM)
    want, state = block.ssm(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, under = block.ssm(x)
        assert block(x)[0].dtype == torch.bfloat16
    assert torch.equal(y, want) and torch.equal(under, state)
    assert torch.equal(block.ssm.kernel(300), block.ssm.kernel(400)[:, :300])
    block = block.bfloat16()
    y, state = block(x.bfloat16())
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    y, state = block(x[:, :1].bfloat16(), state)
    assert y.isfinite().all() and state.dtype == torch.float32


@each_system
def test_powers_and_transposes(build, rule: str) -> None:
    A, _, _ = double(build()).ssm.discretised(torch.float64)
    matrix = A(EYE.expand(DIM, N, N))
    close(A.transposed()(EYE.expand(DIM, N, N)), matrix.mT)
    close(A.squared()(EYE.expand(DIM, N, N)), matrix @ matrix)
    close(A.squared().transposed()(EYE.expand(DIM, N, N)), (matrix @ matrix).mT)


def test_a_decode_step_costs_the_recurrence() -> None:
    """As many products whatever came before: those with B, with C, and of the mixing."""
    for name in ("s4", "s4d"):
        block: Any = Mixer.members[name](DIM, state=N).to("meta")
        x = torch.empty(B, 500, DIM, device="meta")
        _, state = block(x)
        with FlopCounterMode(display=False) as counter:
            block(x[:, :1], state)
        ours = 2 * DIM * N * (1 + B) + 2 * DIM * N * B
        ours += 4 * DIM * N * (1 + B) * (name == "s4")  # what A has beside its diagonal
        assert counter.get_total_flops() == ours + 2 * B * DIM * 2 * DIM


def test_hippo_as_published() -> None:
    A, B = hippo_legs(3)
    root = [1.0, 3**0.5, 5**0.5]
    lower = [[-1, 0, 0], [-root[1], -2, 0], [-root[2], -root[1] * root[2], -3]]
    close(A, torch.tensor(lower, dtype=torch.float64))
    close(B, torch.tensor(root, dtype=torch.float64))


def test_s4_is_born_a_hippo_system() -> None:
    """The kernels of the published matrices, seen through B and through P, are the block's."""
    A, B = hippo_legs(N)
    Lambda, P, B_half = diagonalised(N)
    close(Lambda.real, torch.full((N // 2,), -0.5, dtype=torch.float64))
    assert (Lambda.imag > 0).all() and (B_half.real > 0).all()
    ssm = S4(2, state=N).double().ssm
    with torch.no_grad():
        ssm.C.copy_(torch.view_as_real(torch.stack((B_half, P)).conj().resolve_conj()))
    delta = ssm.log_step.exp()
    assert delta.min() >= 1e-3 and delta.max() <= 1e-1
    for channel, (seen, step) in enumerate(zip((B, B / 2**0.5), delta.unbind(), strict=True)):
        forward = torch.linalg.solve(EYE - step / 2 * A, EYE + step / 2 * A)
        h = torch.linalg.solve(EYE - step / 2 * A, step * B)
        kernel = []
        for _ in range(T):
            kernel.append(seen @ h)
            h = forward @ h
        torch.testing.assert_close(  # the parameters are born in float32
            ssm.kernel(T)[channel], torch.stack(kernel), rtol=1e-5, atol=1e-6
        )


def test_s4d_is_born_as_published() -> None:
    n = torch.arange(N // 2)
    rates = {"lin": 0.5, "inv": 0.5, "real": n + 1.0}
    turns = {"lin": math.pi * n, "inv": N / math.pi * (N / (2 * n + 1) - 1), "real": 0.0}
    for init in ("lin", "inv", "real"):
        ssm = S4D(256, state=N, init=init).ssm
        for got, want in ((ssm.log_rate.exp(), rates), (ssm.frequency, turns)):
            torch.testing.assert_close(got, torch.as_tensor(want[init]).expand(256, N // 2))
    delta = ssm.log_step.exp()
    assert 1e-3 <= delta.min() < 2e-3 and 0.05 < delta.max() <= 0.1
    assert delta.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.3)
    assert ssm.C.var().item() == pytest.approx(0.5, rel=0.2) and ssm.D.var() > 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: S4(8, state=3), r"s4: state must be even \(conjugate pairs\), got 3"),
        (lambda: S4D(8, state=0), r"s4d: state must be positive, got 0"),
        (lambda: H3(8, heads=3), r"h3: heads \(3\) must divide dim \(8\)"),
        (lambda: H3(8, state=5), r"h3: state must be even \(conjugate pairs\), got 5"),
    ],
)
def test_impossible_sizes_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
