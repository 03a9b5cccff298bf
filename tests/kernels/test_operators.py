"""What all kernels owe PyTorch (fake tensors, FLOPs, compile, autocast) and the user (messages)."""

import importlib
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import archsearch.kernels
from archsearch.kernels import causal_conv, delta_scan, interface, scan, selective_scan

FOLDER = Path(archsearch.kernels.__file__).resolve().parent
FUNCTIONS = {
    "scan": scan,
    "delta_scan": delta_scan,
    "selective_scan": selective_scan,
    "causal_conv": causal_conv,
}
B, T, H, K, V, D, N, W = 2, 70, 3, 5, 7, 6, 4, 4


def tensors(name, device="cpu", **changed) -> dict[str, Any]:
    """The tensor arguments of one operator, all present."""
    shapes = {
        "scan": {
            "q": (B, T, H, K),
            "k": (B, T, H, K),
            "v": (B, T, H, V),
            "log_decay": (B, T, H, K),
            "initial_state": (B, H, K, V),
        },
        "delta_scan": {
            "q": (B, T, H, K),
            "k": (B, T, H, K),
            "v": (B, T, H, V),
            "beta": (B, T, H),
            "log_decay": (B, T, H),
            "initial_state": (B, H, K, V),
        },
        "selective_scan": {
            "x": (B, T, D),
            "delta": (B, T, D),
            "A": (D, N),
            "B": (B, T, N),
            "C": (B, T, N),
            "D": (D,),
            "initial_state": (B, D, N),
        },
        "causal_conv": {
            "x": (B, T, D),
            "weight": (D, W),
            "bias": (D,),
            "initial_state": (B, D, W - 1),
        },
    }
    drawn = {n: torch.rand(s, device=device, requires_grad=True) for n, s in shapes[name].items()}
    drawn |= {n: -drawn[n].detach() for n in ("log_decay", "A") if n in drawn}
    return {**drawn, **changed}


def operator_arguments(name, present):
    """The registered operator's positional arguments; without the optional ones if not present."""
    t = tensors(name)
    if name in ("scan", "delta_scan"):
        *values, state = (x.detach()[..., None] if x.dim() == 3 else x for x in t.values())
        values = [x.requires_grad_() for x in values]
        return (*values, 0.5, state if present else None)
    optional = {"selective_scan": ("D", "initial_state"), "causal_conv": ("bias", "initial_state")}
    values = [None if n in optional[name] and not present else x for n, x in t.items()]
    if name == "causal_conv":
        values.insert(3, "silu" if present else None)
        values.append(True)
    return tuple(values)


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_opcheck(name, present):
    operator = getattr(torch.ops.archsearch, f"{name}_chunked").default
    arguments = operator_arguments(name, present)
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_under_activation_checkpointing(name):
    t = tensors(name)
    leaves = [x for x in t.values() if x.requires_grad]

    def gradients(run):
        output, state = run()
        return torch.autograd.grad(output.sum() + state.sum(), leaves)

    def again():
        return checkpoint(lambda: FUNCTIONS[name](**t), use_reentrant=False)

    torch.testing.assert_close(gradients(again), gradients(lambda: FUNCTIONS[name](**t)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_meta_and_fake_tensors_know_shapes_and_dtypes(name):
    def signature(device):
        t = tensors(name, device)
        t["x" if "x" in t else "v"].data = t["x" if "x" in t else "v"].data.bfloat16()
        output, state = FUNCTIONS[name](**t)
        (output.float().sum() + state.float().sum()).backward()
        seen = [output, state, *(x.grad for x in t.values() if x.grad is not None)]
        return [(x.shape, x.dtype, x.stride()) for x in seen]

    want = signature("cpu")
    assert signature("meta") == want
    with FakeTensorMode():
        assert signature("cpu") == want


def test_flops_forward_and_backward_on_meta():
    expected = {
        "scan": (
            B * T * H * (2 * 64 * (K + V) + 4 * K * V),
            B * T * H * (64 * (6 * K + 4 * V) + 10 * K * V),
        ),
        "delta_scan": (
            B * T * H * (4 * 32 * (K + V) + 32 * 32 + 6 * K * V),
            B * T * H * (10 * 32 * (K + V) + 32 * 32 + 16 * K * V),
        ),
        "selective_scan": (B * T * D * (9 * N + 2), B * T * D * (20 * N + 4)),
        "causal_conv": (2 * B * T * D * W, 4 * B * T * D * W),
    }
    for name, (forward, backward) in expected.items():
        with FlopCounterMode(display=False) as counter:
            output, _ = FUNCTIONS[name](**tensors(name, "meta"))
        assert counter.get_total_flops() == forward, name
        with FlopCounterMode(display=False) as counter:
            output.sum().backward()
        assert counter.get_total_flops() == backward, name


def test_flops_of_the_variants():
    def flops(function, **arguments):
        with FlopCounterMode(display=False) as counter:
            output, _ = function(**arguments)
            output.sum().backward()
        return counter.get_total_flops()

    step = {n: tensors("scan", "meta")[n][:, :1] for n in ("q", "k", "v")}
    forward, backward = 2 * (K + V) + 4 * K * V, 6 * K + 4 * V + 10 * K * V
    assert flops(scan, **step) == B * H * (forward + backward)
    step["beta"] = torch.rand(B, 1, H, device="meta")
    forward, backward = 4 * (K + V) + 1 + 6 * K * V, 10 * (K + V) + 1 + 16 * K * V
    assert flops(delta_scan, **step) == B * H * (forward + backward)
    no_skip = tensors("selective_scan", "meta", D=None)
    assert flops(selective_scan, **no_skip) == B * T * D * 29 * N
    silu = tensors("causal_conv", "meta")
    assert flops(causal_conv, **silu, activation="silu") == 6 * B * T * D * W


def test_flops_are_the_same_on_real_tensors():
    for name, function in FUNCTIONS.items():
        totals = []
        for device in ("cpu", "meta"):
            with FlopCounterMode(display=False) as counter:
                function(**tensors(name, device))[0].sum().backward()
            totals.append(counter.get_total_flops())
        assert totals[0] == totals[1] > 0


def test_every_operator_has_a_flop_formula():
    names = sorted(torch.ops.archsearch)
    assert {f"{name}_chunked{end}" for name in FUNCTIONS for end in ("", "_backward")} <= set(names)
    assert [n for n in names if getattr(torch.ops.archsearch, n) not in flop_registry] == []


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiles_without_a_graph_break(name):
    function, t = FUNCTIONS[name], tensors(name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, want in zip(compiled(**t), function(**t), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    compiled(**t)[0].sum().backward()
    got = {n: x.grad for n, x in t.items()}
    for x in t.values():
        x.grad = None
    function(**t)[0].sum().backward()
    torch.testing.assert_close(got, {n: x.grad for n, x in t.items()}, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore")
def test_compiles_with_inductor(name, monkeypatch, tmp_path):
    # Inductor keeps compiled graphs from one process to the next, and does not see it when an
    # operator's outputs have changed their shapes.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    function, t = FUNCTIONS[name], tensors(name)
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(**t), function(**t))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_autocast_does_not_touch_the_sums(name, backend):
    t = tensors(name)
    want = FUNCTIONS[name](**t, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = FUNCTIONS[name](**t, backend=backend)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        got[0].sum().backward()  # the backward pass as well, when it runs under autocast
    inside = {n: x.grad for n, x in t.items() if x.requires_grad}
    for x in t.values():
        x.grad = None
    want[0].sum().backward()
    outside = {n: x.grad for n, x in t.items() if x.requires_grad}
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_auto_is_chunked(name):
    t = tensors(name)
    got, want = FUNCTIONS[name](**t), FUNCTIONS[name](**t, backend="chunked")
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert f"archsearch_{name}_chunked" in str(got[0].grad_fn)
    assert "archsearch" not in str(FUNCTIONS[name](**t, backend="reference")[0].grad_fn)


def test_auto_says_that_triton_is_not_taken_and_says_it_once(monkeypatch):
    launch, tiles = (pytest.importorskip(f"archsearch.kernels.{n}") for n in ("launch", "tiles"))
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(tiles, "RUN", set())
    gpu = torch.device("cuda")
    interface._warn_unchecked.cache_clear()
    with pytest.warns(UserWarning, match="no sm_90 has checked .* backend='triton' runs them"):
        assert not interface._runs_here(gpu)
    with warnings.catch_warnings(action="error"):
        assert not interface._runs_here(gpu)
        tiles.RUN.add("sm_90")
        assert interface._runs_here(gpu) and not interface._runs_here(torch.device("cpu"))


# ---- the package


def test_probing_the_bare_name_imports_nothing():
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r})\n"
        "before = set(sys.modules); import kernels\n"
        "assert 'torch' not in sys.modules and not hasattr(kernels, '__version__')\n"
        "assert kernels.__all__ == ['causal_conv', 'delta_scan', 'long_conv', 'scan', 'selective_scan']\n"
        "assert set(kernels.__all__) <= set(dir(kernels))\n"
        "new = {m for m in set(sys.modules) - before if m.partition('.')[0] not in "
        "sys.stdlib_module_names}; assert new == {'kernels'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match=r"'archsearch\.kernels' has no attribute 'scam'"):
        _ = archsearch.kernels.scam  # pyright: ignore[reportAttributeAccessIssue]


def test_a_copy_in_another_package_lives_beside_us(tmp_path, monkeypatch):
    """An exported model carries these files; it may also be imported again from another place."""
    t = tensors("scan")
    want = scan(**t)
    for place in ("first", "second"):
        package = tmp_path / place / "my_model-1"
        shutil.copytree(FOLDER, package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
        (package / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path / place)
        importlib.import_module("my_model-1.kernels.scan")  # the file first, then its function
        copy = importlib.import_module("my_model-1.kernels")
        got = copy.scan(**t)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert "my_model_1_scan_chunked" in str(got[0].grad_fn)
        with FlopCounterMode(display=False) as counter:
            copy.scan(**t)
        assert counter.get_total_flops() > 0
        for name in [name for name in sys.modules if name.startswith("my_model-1")]:
            monkeypatch.delitem(sys.modules, name)
    assert "archsearch_scan_chunked" in str(scan(**t)[0].grad_fn)


# ---- messages: the operator, the argument, what came, what is allowed

PACKED: dict[str, Any] = {n: torch.rand(1, T, H, K) for n in ("q", "k", "v")}
MESSAGES = [
    ("scan", {"q": [1.0]}, r"scan: q must be a tensor \(B, T, G, K\); got list"),
    ("scan", {"q": torch.ones(2, 3, 4)}, r"q must have shape \(B, T, G, K\).*got \(2, 3, 4\)"),
    ("scan", {"q": torch.ones(2, 0, 3, 5)}, r"q must be \(B, T, G, K\), sizes >= 1; got \(2, 0,"),
    (
        "scan",
        {"k": torch.ones(2, 70, 3, 4)},
        r"scan: k must have shape \(B, T, G, K\) with B = 2, T = 70, G = 3, K = 5; got \(2, 70, 3,",
    ),
    ("scan", {"k": torch.ones(2, 70, 3, 5).int()}, r"k must have a floating-point dtype; got .*32"),
    ("scan", {"v": torch.ones(2, 9, 3, 7)}, r"scan: v must have shape .* got \(2, 9, 3, 7\)"),
    (
        "scan",
        {"v": torch.ones(2, 70, 3, 7, device="meta")},
        r"scan: v must be on cpu as the others; got meta",
    ),
    (
        "scan",
        {"log_decay": torch.ones(2, 70)},
        r"log_decay must be None, \(H,\), \(B, T, H\) or \(B, T, H, K\); got \(2, 70\)",
    ),
    ("scan", {"log_decay": -1.0}, r"log_decay must be None, .*; got float"),
    ("scan", {"log_decay": torch.ones(4)}, r"log_decay must have shape \(H\) with H = 3; got \(4,"),
    (
        "scan",
        {"initial_state": torch.ones(2, 3, 7, 5)},
        r"initial_state must have shape \(B, H, K, V\) with B = 2.*got \(2, 3, 7, 5\)",
    ),
    (
        "scan",
        {n: torch.ones(2, 70, 2, 5) for n in "qk"},
        r"scan: the heads of v must be a multiple .* of q and k; got H = 3 and G = 2",
    ),
    ("scan", {"backend": "cuda"}, r"scan: backend must be one of 'auto', .*; got 'cuda'"),
    ("scan", {"backend": "triton"}, r"scan: backend 'triton' needs tensors on a GPU; got cpu: use"),
    ("scan", {"cu_seqlens": torch.tensor([0, 70])}, r"cu_seqlens .* a batch of 1; got B = 2"),
    ("delta_scan", {"q": torch.ones(2, 70, 3)}, r"delta_scan: q must have shape \(B, T, G, K\)"),
    ("delta_scan", {"k": None}, r"k must be a tensor \(B, T, G, K\) with B = 2.*; got NoneType"),
    ("delta_scan", {"v": torch.ones(2, 70, 3)}, r"v must have shape \(B, T, H, V\) with B = 2"),
    (
        "delta_scan",
        {"beta": torch.ones(2, 70, 1)},
        r"delta_scan: beta must have shape \(B, T, H\) with B = 2, T = 70, H = 3; got \(2, 70, 1\)",
    ),
    (
        "delta_scan",
        {"log_decay": torch.ones(2, 70, 3, 5)},
        r"log_decay must be None, \(H,\) or \(B, T, H\); got \(2, 70, 3, 5\)",
    ),
    ("delta_scan", {"log_decay": torch.ones(2)}, r"log_decay must have shape \(H\) with H = 3"),
    (
        "delta_scan",
        {"initial_state": torch.ones(3, 5, 7)},
        r"initial_state must have shape \(B, H,",
    ),
    (
        "delta_scan",
        {n: torch.ones(2, 70, 2, 5) for n in "qk"},
        r"delta_scan: the heads of v must be a multiple .* of q and k; got H = 3 and G = 2",
    ),
    ("delta_scan", {"backend": "triton"}, r"delta_scan: backend 'triton' needs tensors on a GPU"),
    ("delta_scan", {"cu_seqlens": torch.tensor([0, 70])}, r"cu_seqlens .* a batch of 1; got B = 2"),
    (
        "selective_scan",
        {"delta": torch.ones(2, 70, 1)},
        r"delta must have shape \(B, T, D\) with B = 2, T = 70, D = 6; got \(2, 70, 1\)",
    ),
    ("selective_scan", {"A": torch.ones(4, 6)}, r"A must have shape \(D, N\) with D = 6; got \(4,"),
    ("selective_scan", {"B": torch.ones(2, 70, 3)}, r"B must have shape \(B, T, N\) with .*N = 4;"),
    ("selective_scan", {"C": None}, r"C must be a tensor \(B, T, N\) with .*; got NoneType"),
    ("selective_scan", {"D": torch.ones(2)}, r"D must have shape \(D\) with D = 6; got \(2,\)"),
    ("selective_scan", {"initial_state": torch.ones(2, 4, 6)}, r"initial_state must have shape"),
    ("selective_scan", {"backend": "triton"}, r"selective_scan: backend 'triton' needs tensors on"),
    ("causal_conv", {"x": torch.ones(2, 70)}, r"causal_conv: x must have shape \(B, T, D\)"),
    ("causal_conv", {"weight": torch.ones(5, 4)}, r"weight must have shape \(D, W\) with D = 6"),
    ("causal_conv", {"weight": torch.ones(6, 0)}, r"weight must be \(D, W\) .*sizes >= 1; got"),
    ("causal_conv", {"bias": torch.ones(5)}, r"bias must have shape \(D\) with D = 6; got \(5,\)"),
    ("causal_conv", {"activation": "relu"}, r"activation must be None or 'silu'; got 'relu'"),
    (
        "causal_conv",
        {"initial_state": torch.ones(2, 6, 4)},
        r"initial_state must have shape \(B, D, W-1\) with B = 2, D = 6, W-1 = 3; got \(2, 6, 4\)",
    ),
    ("causal_conv", {"backend": None}, r"causal_conv: backend must be one of .*; got None"),
]


@pytest.mark.parametrize(("name", "changed", "message"), MESSAGES)
def test_a_wrong_argument_is_named(name, changed, message):
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](**tensors(name, **changed))


@pytest.mark.parametrize(
    ("borders", "message"),
    [
        ([0, 70], r"scan: cu_seqlens must be a tensor of int32 or int64; got list"),
        (
            torch.tensor([0.0, 70.0]),
            r"cu_seqlens must be a tensor of int32 or int64; got .*float32",
        ),
        (torch.tensor([70]), r"cu_seqlens must have shape \(N \+ 1,\) with N >= 1; got \(1,\)"),
        (torch.tensor([[0, 70]]), r"cu_seqlens must have shape .*; got \(1, 2\)"),
        (torch.tensor([1, 70]), r"cu_seqlens must run from 0 to T = 70 .*; got \[1, 70\]"),
        (torch.tensor([0, 69]), r"cu_seqlens must run from 0 to T = 70 .*; got \[0, 69\]"),
        (torch.tensor([0, 9, 8, 70]), r"without decreasing; got \[0, 9, 8, 70\]"),
    ],
)
def test_wrong_borders_are_named(borders, message):
    with pytest.raises(ValueError, match=message):
        scan(**PACKED, cu_seqlens=borders)


def test_packed_states_count_the_sequences():
    state = torch.rand(1, H, K, K)
    with pytest.raises(ValueError, match=r"\(sequences, H, K, V\) with sequences = 2.*got \(1, 3,"):
        scan(**PACKED, initial_state=state, cu_seqlens=torch.tensor([0, 9, 70]))
