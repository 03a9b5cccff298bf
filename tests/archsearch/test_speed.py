"""Speed: rates follow from times, what cannot be measured says why, and the allowance holds."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archsearch import build, measuring, memory, reference, speed, task
from archsearch.counting import Counts
from archsearch.ends import Ends
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.workers import Done, run_job

TASK = task("in_context_recall", vocab=8, length=16, batch=4)
RECIPE = Training(steps=2)
SPEC = reference("transformer", dim=16, layers=1)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "CONTEXTS", (8, 32))
    monkeypatch.setattr(measuring, "ROUNDS", measuring.FEWEST)


def measure(spec: ModelSpec, of: Any = TASK, seconds: float = 60.0) -> dict[str, Any]:
    return speed.speed(spec, of, RECIPE, device="cpu", seconds=seconds)


def has_quartiles(time: dict[str, Any]) -> bool:
    fewest, most = measuring.FEWEST, measuring.ROUNDS
    return 0 < time["lower"] <= time["median"] <= time["upper"] and fewest <= time["rounds"] <= most


def test_every_fusion_is_measured_whole(fusion: ModelSpec) -> None:
    """Rates are tokens over the median; what is held is what is counted without a clock."""
    found, counts = measure(fusion), Counts(fusion, TASK.ends)
    batch, length = found["batch"], found["length"]
    assert (batch, length) == TASK.sample(4, torch.Generator())[0].shape
    for name, tokens in (("train", batch * length), ("decode", batch)):
        assert has_quartiles(found[name])
        assert found[name]["tokens_per_second"] == tokens / found[name]["median"]
    traced = memory.train_memory(fusion, TASK.ends, batch=batch, seq_len=length)
    assert (found["train_memory"], found["memory_by"]) == (traced.peak, "trace")
    assert [entry["context"] for entry in found["contexts"]] == [8, 32]
    for entry in found["contexts"]:
        assert entry.keys() == {"context", "prefill", "token", "state_bytes"}
        assert has_quartiles(entry["prefill"])
        assert has_quartiles(entry["token"])
        assert entry["state_bytes"] == counts.forward(1, entry["context"]).state_bytes
    machine = found["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert (machine["device"], machine["torch"]) == ("cpu", torch.__version__)


def test_measuring_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    measure(SPEC)
    assert torch.equal(torch.get_rng_state(), before)


FIXED = {"type": "interleave", "major": {"type": "synthesizer", "length": 64}}
FUTURE = ModelSpec.model_validate({"dim": 16, "layers": 1, "causal": False, "topology": FIXED})


def test_what_sees_the_future_does_not_decode_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "CONTEXTS", (64, 65))
    found = measure(FUTURE, task("sequential_digits", batch=4))
    assert found["decode"].keys() == {"left_out"}
    assert found["decode"]["left_out"].startswith("it sees the future")
    assert has_quartiles(found["train"])
    short, long = found["contexts"]
    assert short.keys() == {"context", "prefill"}
    told = "synthesizer: takes at most length = 64 tokens, got 65"
    assert long == {"context": 65, "left_out": told}


def test_every_end_decodes_or_says_why_not(ends: Ends) -> None:
    reader = speed.Reader(build(SPEC, ends), ends, "cpu", 60.0)
    with torch.inference_mode():
        decode, contexts = reader.decode(2, 8), reader.contexts()
    assert ("left_out" in decode) == (not ends.streams)
    assert all(("token" in entry) == ends.streams and "prefill" in entry for entry in contexts)


class Clock:
    """Time that passes only where a model works: `seconds(context)` for a pass, more for the first.

    It stands for the model, too.
    """

    streams = False

    def __init__(self, seconds: Callable[[int], float], cold: float = 1.0) -> None:
        self.now, self.seconds, self.cold = 0.0, seconds, cold

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter

    def __call__(self, inputs: torch.Tensor) -> tuple[None, None]:
        self.now += self.seconds(inputs.shape[1]) * self.cold
        self.cold = 1.0
        return None, None


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_has_its_own_time(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs take of the machine is not in it."""
    clock = Clock(lambda context: 1.0)
    clock.process_time = lambda: clock.now / 4
    monkeypatch.setattr(measuring, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    passed = measuring.timed(lambda: clock(torch.zeros(1, 8)), "cpu")
    assert passed.lower == passed.median == passed.upper == (1.0 if threads > 1 else 0.25)


def read(clock: Clock, seconds: float) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (measuring, speed):
            patch.setattr(module, "time", clock)
        return speed.Reader(cast(Any, clock), TASK.ends, "cpu", seconds).contexts()


@given(
    one=st.floats(1e-4, 3),
    power=st.sampled_from([0, 1, 2]),
    cold=st.sampled_from([1.0, 4.0, 50.0]),
    seconds=st.floats(0.1, 10),
)
def test_the_allowance_holds(one: float, power: int, cold: float, seconds: float) -> None:
    """But for the very first pass, of which nothing is known."""
    clock = Clock(lambda context: one * (context / 8) ** power, cold)
    entries = read(clock, seconds)
    assert clock.now <= seconds + one * cold + 1e-9
    for entry in entries:
        assert ("prefill" in entry) != ("left_out" in entry)
        if "prefill" in entry:
            assert entry["prefill"]["rounds"] >= measuring.FEWEST
            assert entry["prefill"]["median"] == pytest.approx(clock.seconds(entry["context"]))


def test_with_time_enough_nothing_is_left_out() -> None:
    for power in (0, 1, 2):
        entries = read(Clock(lambda context, p=power: (context / 8) ** p), 1e6)
        assert [entry["context"] for entry in entries if "prefill" in entry] == [8, 32]


def test_a_longer_allowance_comes_with_a_longer_training() -> None:
    assert speed.allowance(1.0) == speed.ALLOWANCE
    assert speed.allowance(86400.0) == 86400 * speed.SHARE


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ],
)
def test_a_context_that_does_not_fit_into_memory_is_told(error: Exception) -> None:
    def refuse(context: int) -> float:
        if context > 8:
            raise error
        return 1e-3

    short, long = read(Clock(refuse), 10.0)
    assert "prefill" in short
    assert long == {"context": 32, "left_out": "out of memory"}


def test_any_other_error_is_not_hidden() -> None:
    def refuse(context: int) -> float:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        read(Clock(refuse), 10.0)


def test_a_job_gives_what_is_measured_of_its_first_task() -> None:
    tasks = [TASK.model_dump(mode="json"), {"type": "no task of ours"}]
    job = speed.SpeedJob(
        number=0, spec=SPEC.model_dump(mode="json"), tasks=tasks, seconds=1.0, split="test",
        training=RECIPE.model_dump(mode="json"), seed=0, device="cpu", folder="nowhere",
    )  # fmt: skip
    end = run_job(job)
    assert isinstance(end, Done), end
    assert end.run.keys() == measure(SPEC).keys()


def test_a_curriculum_is_over_when_a_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    gradients = speed.Run.gradients
    spied = lambda run: read.append(run.lesson.length) or gradients(run)  # noqa: E731
    monkeypatch.setattr(speed.Run, "gradients", spied)
    recipe = Training(steps=4, curriculum=[0.5])
    speed.speed(SPEC, TASK, recipe, device="cpu", seconds=60.0)
    assert {*read} == {16}
