"""Costs are counted on shapes, and agree with formulas derived by hand, and with reality."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from archsearch import build, cost, counting, reference
from archsearch.baselines import DESIGNS
from archsearch.blocks import Mixer
from archsearch.counting import Counts
from archsearch.ends import Ends, language
from archsearch.graph import period
from archsearch.memory import train_memory, workspace
from archsearch.spec import ModelSpec

D, LAYERS, V, B, T = 16, 2, 32, 2, 64
LANGUAGE = language(V)


def spec(name: str) -> ModelSpec:
    return reference(name, dim=D, layers=LAYERS)


@pytest.mark.parametrize("name", DESIGNS)
def test_costs_agree_with_the_real_model(name: str) -> None:
    check_costs(spec(name))


def test_costs_of_fusions_agree_with_the_real_model(fusion: ModelSpec) -> None:
    check_costs(fusion)


@pytest.mark.parametrize("positions", ["alibi", "learned"])  # learned: no fused attention has it
def test_costs_of_attention_with_a_bias_agree_with_the_real_model(positions: str) -> None:
    attention = {"type": "attention", "heads": 4, "kv_heads": 2, "positions": positions}
    topology = {"type": "interleave", "major": attention}
    check_costs(ModelSpec.model_validate({"dim": D, "layers": 2, "topology": topology}))


@pytest.mark.parametrize("name", ["mamba", "h3", "retnet"])
def test_costs_between_any_ends_agree_with_the_real_model(name: str, ends: Ends) -> None:
    check_costs(spec(name), ends)


def check_costs(spec: ModelSpec, ends: Ends = LANGUAGE) -> None:
    """Counted without memory, node by node, equal to what the built model has and does."""
    counted = cost(spec, ends, batch=B, seq_len=T)
    model, inputs = build(spec, ends), ends.inputs(B, T)
    own = [
        p.numel() for name, p in model.named_parameters() if name.startswith(("embed.", "head."))
    ]
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.embedding_parameters == sum(own)
    with FlopCounterMode(display=False) as forward:
        y, state = model(inputs)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    leaves = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    with FlopCounterMode(display=False) as decode, torch.no_grad():
        for _ in range(period(spec.graph()) if ends.streams else 0):
            _, state = model(inputs[:, :1], state)  # a slow layer's work falls on one of these
    with counting.Counter() as moved, torch.no_grad():
        model(inputs)
    assert counted.bytes_moved == moved.bytes_moved
    assert counted.forward_flops == forward.get_total_flops()
    assert counted.train_flops == forward.get_total_flops() + backward.get_total_flops()
    assert counted.decode_flops == round(decode.get_total_flops() / period(spec.graph()))
    assert counted.state_bytes == sum(leaf.nbytes for leaf in leaves)
    assert Counts(spec, ends).state_bytes(B, T) == counted.state_bytes


@pytest.mark.parametrize("name", DESIGNS)
def test_the_state_of_half_precision_is_the_real_one(name: str) -> None:
    model, tokens = build(spec(name), vocab=V).to(torch.bfloat16), torch.randint(V, (1, 40))
    with torch.no_grad():
        _, state = model(tokens)
    real = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
    assert Counts(spec(name), LANGUAGE, torch.bfloat16).forward(1, 40).state_bytes == real


def test_bytes_moved_by_hand() -> None:
    """An addition reads two tensors and writes one; so does a product."""
    with counting.Counter() as counter:
        x = torch.empty(3, 5, device="meta")
        made = counter.bytes_moved
        y = (x + x).T @ x
    assert made == 60
    assert counter.bytes_moved - made == 3 * 60 + (2 * 60 + 100)
    assert counter.flops == 2 * 5 * 3 * 5
    assert y.shape == (5, 5)


def test_equal_nodes_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve layers cost as many runs as one, and a second candidate of the same parts none."""
    counting._run.cache_clear()
    deep = Counts(reference("transformer", dim=24, layers=12), LANGUAGE)
    flops = deep.forward(1, T).flops
    runs = counting._run.cache_info().misses
    shallow = Counts(reference("transformer", dim=24, layers=1), LANGUAGE)
    assert counting._run.cache_info().misses == runs == 6  # embed, norm, mixer, add, mlp, head
    head = 2 * T * 24 * V
    assert flops - head == 12 * (shallow.forward(1, T).flops - head)
    assert counting._run.cache_info().misses == runs


def test_transformer_flops_by_hand() -> None:
    """2 FLOPs a weight and token, and 4 T^2 D a layer for scores and values."""
    hidden = round(8 / 3 * D)
    weights = LAYERS * (4 * D * D + 3 * D * hidden) + V * D
    expected = B * T * 2 * weights + B * LAYERS * 4 * T * T * D
    assert Counts(spec("transformer"), LANGUAGE).forward(B, T).flops == expected


def test_transformer_training_flops_by_hand() -> None:
    """Twice the forward pass for its gradients, of attention 2.5 times: its scores are redone."""
    forward = Counts(spec("transformer"), LANGUAGE).forward(B, T).flops
    attention = B * LAYERS * 4 * T * T * D
    assert Counts(spec("transformer"), LANGUAGE).train(B, T).flops == 3 * forward + 0.5 * attention


def test_retnet_flops_by_hand() -> None:
    """The scan adds 2 C (K + V) + 4 K V a token and head, with chunks of C = 64."""
    hidden, H, K, W = round(4 / 3 * D), 4, D // 4, D // 2  # W: value width of a head
    weights = LAYERS * (8 * D * D + 3 * D * hidden) + V * D
    scan = LAYERS * H * (2 * 64 * (K + W) + 4 * K * W)
    assert Counts(spec("retnet"), LANGUAGE).forward(B, T).flops == B * T * (2 * weights + scan)


@pytest.mark.parametrize("mixer", Mixer.members)
@pytest.mark.parametrize("causal", [True, False])
def test_the_state_alone_is_that_of_a_whole_pass(mixer: str, causal: bool) -> None:
    """Of every mixer, beside one whose state grows, in layers at two rates."""
    stages = {"a": {"mixer": mixer}, "b": {"mixer": "attention", "rate": 2}}
    topology = {"type": "hierarchical", "stages": stages, "depth": {"a": 1, "b": 1}}
    whole = {"dim": D, "layers": 2, "topology": topology, "causal": causal}
    try:
        counts = Counts(ModelSpec.model_validate(whole), LANGUAGE)
    except ValueError:
        pytest.skip("sees the future always")
    for length in (1, 2, 3, 40):
        assert counts.state_bytes(B, length) == counts.forward(B, length).state_bytes


def test_mixers_whose_state_has_a_size_are_not_run_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = counting._run
    monkeypatch.setattr(counting, "_run", lambda *args: asked.append(args) or run(*args))
    assert Counts(spec("s4d"), LANGUAGE).state_bytes(B, 4096)
    assert {args[3][0].shape[1] for args in asked if args[0].op == "mixer"} == {1}
    asked.clear()
    assert Counts(spec("transformer"), LANGUAGE).state_bytes(B, 4096)
    assert 4096 in {args[3][0].shape[1] for args in asked if args[0].op == "mixer"}


def test_state_bytes_by_hand() -> None:
    grown = [Counts(spec("transformer"), LANGUAGE).forward(B, t).state_bytes for t in (10, 100)]
    assert grown[1] - grown[0] == LAYERS * B * 90 * 2 * D * 4  # keys and values, float32
    same = [Counts(spec("mamba"), LANGUAGE).forward(B, t).state_bytes for t in (10, 100)]
    inner = 2 * D
    assert same[0] == same[1] == 2 * LAYERS * B * 4 * (inner * 16 + inner * 3)


GROWING = (
    "parameters",
    "embedding_parameters",
    "forward_flops",
    "train_flops",
    "decode_flops",
    "bytes_moved",
    "decode_bytes_moved",
    "state_bytes",
    "train_memory",
)


@pytest.mark.parametrize("name", ["retnet", "mamba", "transformer", "lstm"])
def test_costs_grow_with_size(name: str) -> None:
    small = cost(spec(name), batch=1, seq_len=32, vocab=V)
    wide, deep = (
        reference(name, dim=2 * D, layers=LAYERS),
        reference(name, dim=D, layers=2 * LAYERS),
    )
    wider = cost(wide, batch=1, seq_len=32, vocab=V)
    deeper = cost(deep, batch=1, seq_len=32, vocab=V)
    longer = cost(spec(name), batch=1, seq_len=64, vocab=V)
    for key in GROWING:
        assert 0 < getattr(small, key) < getattr(wider, key), key
        assert getattr(small, key) <= getattr(deeper, key), key
        assert getattr(small, key) <= getattr(longer, key), key
    assert small.forward_flops < deeper.forward_flops
    assert small.memory.peak == small.train_memory
    assert small.memory.parameters >= 4 * small.parameters  # and the buffers
    assert small.flops_per_token == small.forward_flops / 32
    assert small.arithmetic_intensity == small.forward_flops / small.bytes_moved


@pytest.mark.parametrize("name", DESIGNS)
def test_train_memory_is_the_allocators_peak(name: str) -> None:
    """Within 2% of what the CPU allocated, temporaries inside of our operators included."""
    check_memory(reference(name, dim=64, layers=2), 2, 128)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mixer", [m for m, cls in Mixer.members.items() if getattr(cls, "causal", True)]
)
def test_train_memory_of_every_mixer_is_the_allocators_peak(mixer: str) -> None:
    topology = {"type": "interleave", "major": mixer}
    check_memory(ModelSpec.model_validate({"dim": 128, "layers": 2, "topology": topology}), 4, 192)


@pytest.mark.slow
def test_train_memory_between_any_ends_is_the_allocators_peak(ends: Ends) -> None:
    check_memory(reference("mamba", dim=64, layers=2), 2, 128, ends)


def check_memory(spec: ModelSpec, batch: int, length: int, ends: Ends = LANGUAGE) -> None:
    model = build(spec, ends)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    inputs, targets = ends.inputs(batch, length), ends.targets(batch, length)

    def step() -> None:
        optimizer.zero_grad()
        ends.loss(model(inputs)[0], targets).backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    weights = sum(p.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    adam = sum(x.nbytes for s in optimizer.state.values() for x in s.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()  # type: ignore[attr-defined]
            peak = max(peak, now)
    traced = train_memory(spec, ends, batch=batch, seq_len=length)
    assert (traced.parameters, traced.optimizer) == (weights + buffers, adam)
    standing = weights + buffers + adam + inputs.nbytes + targets.nbytes
    assert traced.peak == pytest.approx(standing + peak, rel=0.02)


def test_where_the_peak_is_the_optimisers_all_gradients_are_there() -> None:
    """Few tokens through wide layers: the peak is at the end of the backward pass."""
    m = train_memory(reference("transformer", dim=128, layers=4), LANGUAGE, batch=1, seq_len=4)
    assert m.optimizer > 2 * m.gradients > 1.6 * m.parameters
    assert m.activations < m.parameters


SEVEN_BILLION = """
from archsearch import cost, reference
spec = reference("transformer", dim=4096, layers=32, heads=32)
told = cost(spec, batch=8, seq_len=4096, vocab=32000)
status = open("/proc/self/status").read()  # ru_maxrss would be the parent's, if that is larger
print(told.parameters, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_seven_billion_parameters_are_costed_in_a_gibibyte() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SEVEN_BILLION], capture_output=True, text=True, check=True
    )
    parameters, peak = map(int, run.stdout.split())
    assert parameters > 6.5e9
    assert peak < 2**30


def test_an_operator_that_reads_values_is_warned_of() -> None:
    @torch.library.custom_op("test_costs::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * (2 if x.sum().item() > 0 else 3)

    twice.register_fake(torch.empty_like)
    x = torch.empty(8, device="meta")
    operator = torch.ops.test_costs.twice.default
    with pytest.warns(UserWarning, match=r"twice.*cannot be run on shapes alone"):
        assert workspace(operator, (x,), {}) == 0


def test_an_operator_is_opened_up() -> None:
    """Its second temporary is there before the first goes, and the result before both."""

    @torch.library.custom_op("test_costs::sixth", mutates_args=())
    def sixth(x: torch.Tensor) -> torch.Tensor:
        a = x * x
        return (a * x).reshape(-1) + a.reshape(-1)

    sixth.register_fake(torch.empty_like)
    x = torch.empty(8, device="meta")
    assert workspace(torch.ops.test_costs.sixth.default, (x,), {}) == 3 * 32
