"""The benchmark on tiny cases: who is wrong is not timed, who is absent is named, counts are right."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from archsearch import cli
from archsearch.bench import checks, run, table, timing
from archsearch.bench.adapter import Adapter
from archsearch.bench.cases import OPERATORS, costs, retention_decays
from archsearch.bench.claims import Claim, verdicts
from archsearch.bench.peers import PEERS, Peer, find
from archsearch.bench.record import TIMED, Row
from archsearch.bench.run import Runner, Settings
from archsearch.bench.timing import Timing
from archsearch.errors import UserError

CPU = torch.device("cpu")
TINY = {
    "BTHK": (2, 16, 2, 4), "BTHPNG": (2, 16, 4, 4, 3, 2), "BTDN": (2, 16, 6, 3), "BTDW": (2, 16, 6, 4),
}  # fmt: skip
QUICK = Settings(device="cpu", rounds=1, seconds=1)
NO_HALVES = "cannot: T = 64 is no multiple of 128"


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timing.COPY_BYTES, "cpu", 1 << 16)


def bench(name: str, peers=(), settings=QUICK, length=16):
    """What a run found in one tiny case, and the case."""
    B, _, *rest = TINY[OPERATORS[name].letters]
    runner = Runner(settings, [name], [(B, length, *rest)], peers)
    (result,) = runner.results()
    return runner.bench, result


@pytest.mark.parametrize("name", OPERATORS)
def test_every_peer_that_is_here_computes_what_the_reference_does(name: str) -> None:
    """Ours, PyTorch's, and those of the others that are installed, values and gradients."""
    _, result = bench(name, PEERS, length=64)  # the chunk of those who take nothing shorter
    assert {
        row.name: row.status for row in result.rows if row.status not in (TIMED, NO_HALVES)
    } == {}
    names = [row.name for row in result.rows]
    assert names[:2] == ["archsearch", "python loop"]
    assert ("torch causal SDPA" in names) == name.startswith("scan.")
    assert ("torch F.conv1d" in names) == name.startswith("causal_conv.")
    assert all(row.error < 1e-5 for row in result.rows if row.error is not None)
    modes = {"forward", "training"}
    assert all(set(row.times) == modes for row in result.rows if row.status == TIMED)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes_have_their_own_tolerance(dtype: str) -> None:
    _, result = bench("scan.vector", PEERS[:3], replace(QUICK, dtype=dtype))
    assert [row.status for row in result.rows] == [TIMED] * 4


class Fake:
    """A peer for scan.none whose output is changed; it counts its calls."""

    def __init__(self, change) -> None:
        self.calls, self.change = 0, change
        self.peer = Peer("fake", self.load)

    def load(self) -> dict[str, Adapter]:
        return {"scan.none": Adapter(self.call)}

    def call(self, t):
        self.calls += 1
        return self.change(OPERATORS["scan.none"].call(t, "reference", None)[0])


def only_the_value(o):
    return o.detach() + 0 * o


def fail(o):
    raise RuntimeError("no kernel image\nand much more")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda o: 1.01 * o, "wrong: error 1.0e-02 in the "),
        (only_the_value, "wrong: error 1.0e+00 in the gradient to v"),
        (lambda o: o / 0, "wrong: error inf"),
        (lambda o: o[:, :-1], "wrong: error inf in the output"),
        (fail, "failed: RuntimeError: no kernel image"),
    ],
)
def test_a_wrong_peer_is_reported_and_not_timed(change, status: str) -> None:
    fake = Fake(change)
    _, result = bench("scan.none", [fake.peer])
    ours, row = result.rows
    assert ours.status == TIMED and ours.times
    assert row.status.startswith(status)
    assert "\n" not in row.status
    assert row.times == {} and fake.calls == 1
    assert f"fake: {row.status}" in list(table.remarks(result))


def test_a_peer_says_what_it_cannot_run_on() -> None:
    refusing = Adapter(lambda t: t["q"], refuse=lambda t: f"T = {t['q'].shape[1]} is too long")
    _, result = bench("scan.none", [Peer("picky", lambda: {"scan.none": refusing})])
    assert result.rows[1].status == "cannot: T = 16 is too long"


def test_who_is_absent_is_named_with_the_remedy() -> None:
    def broken() -> dict[str, Adapter]:
        raise OSError("libcuda.so: no such file")

    absent = Peer("nobody", broken, "no-such-distribution", "no-such-distribution")
    found, _ = bench(
        "scan.none", [absent, Peer("broken", broken), replace(absent, devices=("cuda",))]
    )
    statuses = [entrant.status for entrant in found.entrants]
    assert statuses == [
        "ready",
        "not installed: pip install no-such-distribution",
        "cannot be imported: OSError: libcuda.so: no such file",
        "needs cuda",
    ]
    assert "nobody: not installed: pip install no-such-distribution" in table.markdown(found)
    assert found.as_json()["peers"][1]["status"] == statuses[1]


def test_every_peer_is_ready_or_says_why_not() -> None:
    for peer in PEERS:
        status = find(peer, "cpu").status
        assert status == "ready" or status.startswith(("not installed: pip install ", "needs cuda"))


def by_reference(name: str, **inputs):
    return OPERATORS[name].call(inputs, "reference", None)


def retention(q, k, v, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    return by_reference("scan.fixed", q=q, k=k, v=v, log_decay=retention_decays(q.shape[2], CPU))


def simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, **_):
    return by_reference("scan.none" if g is None else "scan.scalar", q=q, k=k, v=v, log_decay=g)


def linear_attn(q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True):
    assert not normalize  # by the sum of keys, unless told otherwise
    return by_reference("scan.none", q=q, k=k, v=v)


def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    return by_reference("scan.vector", q=q, k=k, v=v, log_decay=g)


def gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None):
    return by_reference("delta_scan", q=q, k=k, v=v, beta=beta, log_decay=g)


def fla_conv(
    x,
    weight=None,
    bias=None,
    residual=None,
    initial_state=None,
    output_final_state=False,
    activation=None,
):
    return by_reference(f"causal_conv.{activation or 'none'}", x=x, weight=weight, bias=bias)


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    steps = {"x": u.mT, "delta": delta.mT, "B": B.mT, "C": C.mT}
    return by_reference("selective_scan", A=A, D=D, **steps)[0].mT


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None):
    return by_reference("ssd", x=x, dt=dt, A=A, B=B, C=C)[0]


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    return by_reference(f"causal_conv.{activation or 'none'}", x=x.mT, weight=weight, bias=bias)[
        0
    ].mT


STAND_INS = {  # with the parameters of fla-core 0.6.0, mamba-ssm 2.3 and causal-conv1d 1.7, in order
    "fla.ops": {
        "chunk_linear_attn": linear_attn, "chunk_retention": retention, "chunk_simple_gla": simple_gla,
        "chunk_gla": gla, "chunk_gated_delta_rule": gated_delta_rule, "fused_chunk_retention": retention,
    },
    "fla.ops.simple_gla": {"fused_chunk_simple_gla": simple_gla},
    "fla.modules.causal_conv1d": {"causal_conv1d": fla_conv},
    "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
    "mamba_ssm.ops.triton.ssd_combined": {"mamba_chunk_scan_combined": mamba_chunk_scan_combined},
    "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_the_peers_of_a_gpu_are_called_as_they_are_written(name: str, monkeypatch) -> None:
    """Stand-ins with their signatures and layouts: whoever has a GPU meets no surprise here."""
    for module, functions in STAND_INS.items():
        for part in (
            "fla",
            "fla.ops",
            "fla.modules",
            "mamba_ssm",
            "mamba_ssm.ops",
            "mamba_ssm.ops.triton",
        ):
            if module.startswith(part) and module != part:
                monkeypatch.setitem(sys.modules, part, sys.modules.get(part, ModuleType(part)))
        stand_in = ModuleType(module)
        vars(stand_in).update(functions)
        monkeypatch.setitem(sys.modules, module, stand_in)
    theirs = [p for p in PEERS if p.devices == ("cuda",) and p.package != "archsearch"]
    gpu_only = [replace(p, devices=("cpu",), install="") for p in theirs]
    dtype = "bfloat16" if name == "delta_scan" else "float32"
    _, result = bench(name, gpu_only, replace(QUICK, dtype=dtype))
    assert {row.status for row in result.rows} == {TIMED}
    family = name.partition(".")[0]
    assert len(result.rows) - 1 == {"scan": 1 + (name != "scan.vector"), "causal_conv": 2}.get(
        family, 1
    )


def test_no_graph_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rows = {
        "short": Row("short", TIMED, times={"forward": Timing((1.0,))}),
        "long": Row("long", TIMED, times={"forward": Timing((1000.0,))}),
    }
    calls = dict.fromkeys(rows, lambda: None)
    assert run._graphs(calls, "forward", rows) == {}
    assert rows["short"].notes[0].startswith("forward: no CUDA graph: RuntimeError: operation not")
    assert rows["long"].notes == ["forward: too long to gain from a CUDA graph"]


def test_flops_and_bytes() -> None:
    """FLOPs are the formulas of the operators, bytes every tensor once."""
    B, T, H, K, D, N, W = 2, 128, 3, 8, 6, 4, 4
    scan = OPERATORS["scan.vector"]
    inputs = scan.inputs((B, T, H, K), torch.bfloat16, CPU)
    forward, backward = B * T * H * (4 * 64 * K + 4 * K * K), B * T * H * (64 * 10 * K + 10 * K * K)
    size = 2 * B * T * H * K
    found = costs(scan, inputs)
    assert (found.forward_flops, found.training_flops) == (forward, forward + backward)
    # q, k, v, g, o; backward reads q, k, v, g, do and writes four gradients
    assert (found.forward_bytes, found.training_bytes) == (5 * size, (5 + 5 + 4) * size)

    # A decay that is fixed has no gradient, and stays in float32.
    fixed = OPERATORS["scan.fixed"]
    found = costs(fixed, fixed.inputs((B, T, H, K), torch.bfloat16, CPU))
    assert found.training_bytes == (4 + 4 + 3) * size + 2 * 4 * H

    selective = OPERATORS["selective_scan"]
    found = costs(selective, selective.inputs((B, T, D, N), torch.float32, CPU))
    assert found.forward_flops == B * T * D * (9 * N + 2)
    assert found.training_flops == found.forward_flops + B * T * D * (20 * N + 4)
    assert found.forward_bytes == 4 * (3 * B * T * D + 2 * B * T * N + D * N + D)

    conv = OPERATORS["causal_conv.silu"]
    found = costs(conv, conv.inputs((B, T, D, W), torch.float32, CPU))
    assert (found.forward_flops, found.training_flops) == (2 * B * T * D * W, 6 * B * T * D * W)


def test_the_reference_in_segments_is_the_reference() -> None:
    """The truth of long cases is taken a piece at a time; gradients cross the pieces."""
    for name in ("scan.vector", "ssd", "selective_scan", "causal_conv.silu"):
        operator = OPERATORS[name]
        B, _, *rest = TINY[operator.letters]
        inputs = operator.inputs((B, 70, *rest), torch.float64, CPU)
        got = checks.evaluate(operator.reference, inputs, torch.float64)
        whole = checks.evaluate(
            lambda t, call=operator.call: call(t, "reference", None)[0], inputs, torch.float64
        )
        assert checks.largest_error(got, whole)[0] < 1e-12


def test_all_take_turns_and_a_ratio_is_that_of_the_rounds() -> None:
    turns: list[str] = []
    minutes = {"a": 1.0, "b": 3.0, "slow": 5000.0}
    calls = {name: (lambda name=name: turns.append(name)) for name in minutes}

    def stopwatch(call) -> float:
        call()
        return minutes[turns[-1]] * (2 if len(turns) > 7 else 1)  # the machine is slower later on

    timed = timing.side_by_side(calls, stopwatch, rounds=8, seconds=4)
    assert sorted(turns[:3]) == sorted(minutes)
    rounds = {tuple(turns[i : i + 2]) for i in range(3, len(turns), 2)}
    assert rounds == {("a", "b"), ("b", "a")}  # in either order
    assert len(timed["a"].samples) == 8 and timed["slow"].samples == (5000.0,)
    assert timed["b"].times(timed["a"]) == 3
    assert timed["slow"].times(timed["a"]) == 5000 / timed["a"].median
    assert Timing((1, 2, 3, 4, 5, 100)).quintiles == (2, 5)


def test_claims_are_judged_on_the_worst_case_and_the_best_peer(monkeypatch) -> None:
    found, result = bench("scan.none", PEERS[:1])
    _, loop = result.rows
    result.rows.append(replace(loop, name="python loop, better"))
    for row, ms in zip(result.rows, (1.0, 9.0, 7.0), strict=True):
        row.times = {"training": Timing((ms, ms))}
    claims = [Claim("scan", "python loop", 7), Claim("scan.none", "python loop", 8, range(1, 65))]
    beside = [Claim("scan", "python loop", 1, range(9, 10)), Claim("scan", "nobody", 1)]
    monkeypatch.setattr("archsearch.bench.claims.CLAIMS", claims + beside)
    assert [(v.holds, list(v.reached.values())) for v in verdicts(found)] == [
        (True, [7]),
        (False, [7]),
    ]
    met, missed = table.judged(found)
    assert met.startswith(
        "met: scan: python loop takes at least 7 x our time; reached 7.00 (scan.none B 2, T 16"
    )
    assert missed.startswith(
        "NOT MET: scan.none from T = 1 on: python loop takes at least 8 x our time"
    )


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["archsearch", "bench", "kernels", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code if isinstance(left.value.code, int) else 0


def test_the_command_prints_tables_and_writes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conv = OPERATORS["causal_conv.silu"]
    monkeypatch.setitem(run.OPERATORS, conv.name, replace(conv, shapes={"cpu": [(2, 8, 4, 3)]}))
    out = tmp_path / "cpu.json"
    assert call(monkeypatch, "--device", "cpu", "--only", conv.name, "--out", out) == 0
    told = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["settings"]["threads"] == 1 and written["settings"]["dtype"] == "float32"
    assert written["copy_bandwidth_gb_per_s"] > 0
    (case,) = written["cases"]
    assert case["operator"] == conv.name and case["shape"] == {"B": 2, "T": 8, "D": 4, "W": 3}
    assert set(case["floor_ms"]) == {"forward", "training"}
    assert len(case["contestants"]) == 4
    for contestant in case["contestants"]:
        for measure in contestant["times"].values():
            assert measure.keys() == {
                "ms", "low", "high", "rounds", "gb_per_s", "gflop_per_s", "times_floor", "times_ours",
            }  # fmt: skip
            assert measure["low"] <= measure["ms"] <= measure["high"]
    text = out.with_suffix(".md").read_text()
    for part in (
        "causal_conv.silu  B 2, T 8, D 4, W 3",
        "torch F.conv1d",
        "floor",
        "F.conv1d takes at least 1 x our time; reached",
    ):
        assert part in told and part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "scna"],
            "--only scna: no such operator; did you mean 'scan'? allowed: causal_conv",
        ),
        (["--dtype", "float31"], "dtype float31: did you mean 'float32'?"),
        (["--device", "cuda:77"], "device cuda:77"),
        (["--device", "meta"], "device meta: shapes and clocks are there for cpu and cuda"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--out", "table.txt"], "--out table.txt: must be a .json file in a folder that exists"),
        (
            ["--out", "nowhere/table.json"],
            "--out nowhere/table.json: must be a .json file in a folder",
        ),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_threads_must_be_positive() -> None:
    with pytest.raises(UserError, match="threads must be at least 1; got 0"):
        Runner(replace(QUICK, threads=0))
