"""Times that can be compared: all contestants take turns, in one process, round after round.

What disturbs one disturbs its neighbours too, so a ratio is the median of the rounds' own ratios.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]  # milliseconds of one call

ROUNDS = 15
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # larger than the caches
L2_BYTES = 1 << 28


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, round by round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quintiles(self) -> tuple[float, float]:
        """The second fastest and the second slowest fifth begin here: the spread."""
        ordered, last = sorted(self.samples), len(self.samples) - 1
        return ordered[round(0.2 * last)], ordered[round(0.8 * last)]

    def times(self, other: "Timing") -> float:
        """How many times as long as the other: the median over the rounds both took part in."""
        if min(len(self.samples), len(other.samples)) == 1:
            return self.median / other.median
        pairs = zip(self.samples, other.samples, strict=False)  # who is slow leaves early
        return statistics.median(a / b for a, b in pairs)


def side_by_side(
    calls: Mapping[str, Call], stopwatch: Stopwatch, rounds: int, seconds: float
) -> dict[str, Timing]:
    """Let all take turns, in another order each round; who has had its seconds leaves.

    In a fixed cycle each would always find the caches as the same one before leaves them, which
    was worth up to 9 % between two copies of one operator. The first round warms up, and counts
    for those only who leave after it.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    gc.disable()  # a collection would be charged to whoever is on
    try:
        for _ in range(rounds + 1):
            for name in order.sample(names, len(names)):
                if sum(samples[name]) <= seconds * 1e3:
                    samples[name].append(stopwatch(calls[name]))
    finally:
        gc.enable()
    return {name: Timing(tuple(all_[1:] or all_)) for name, all_ in samples.items()}


def clock_of(device: torch.device, threads: int) -> str:
    """What the times are times of, in words."""
    if device.type == "cuda":
        return "CUDA events, cold L2 cache"
    return "process time" if threads == 1 else "wall clock"


def stopwatch_for(device: torch.device, threads: int) -> Stopwatch:
    """CUDA events on a GPU; on a CPU the time this process ran, or with threads the wall clock.

    The one thread's own time leaves out what other programs take of a shared machine.
    """
    if device.type == "cuda":
        return _cuda_stopwatch(device)
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns

    def measure(call: Call) -> float:
        start = clock()
        call()
        return (clock() - start) / 1e6

    return measure


def _cuda_stopwatch(device: torch.device) -> Stopwatch:
    """As triton.testing.do_bench: the L2 cache is overwritten before each call.

    The launches of a short call hide behind that write in part: see `captured` for the rest.
    """
    cache = torch.empty(L2_BYTES, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure(call: Call) -> float:
        cache.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)

    return measure


def captured(call: Call) -> Call:
    """The call as a CUDA graph: what is left when launching costs nothing.

    Raises:
        RuntimeError: the call synchronises, or cannot be captured for another reason.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # lazy initialisation and tuning are over before the capture
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def copy_bandwidth(device: torch.device, stopwatch: Stopwatch) -> float:
    """Bytes a second, read and written, of the fastest of ten large copies."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source).zero_()
    fastest = min(stopwatch(lambda: target.copy_(source)) for _ in range(10))
    return 2 * source.nbytes / fastest * 1e3
