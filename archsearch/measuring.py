"""Costs measured on the device: times, and what a built model really holds.

A time is the median over rounds after a warm-up, with its quartiles. On a CPU and in a process of
one thread it is the time that the process itself ran. Else it is by the wall clock, and the machine
is as busy as it is: what else runs there, other workers too, is in the times.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from archsearch import graph
from archsearch.blocks import State
from archsearch.ends import Ends
from archsearch.model import Model, build
from archsearch.spec import ModelSpec

WARM_UP = 3
ROUNDS = 20
FEWEST = 5
"""Rounds that there always are."""
LIMIT = 5.0
"""Seconds after which no further round begins."""


@dataclass(frozen=True)
class Time:
    """Seconds: the median of the rounds, the quartiles around it, and how many rounds."""

    median: float
    lower: float
    upper: float
    rounds: int

    def each(self, n: int) -> "Time":
        """Of one of the n things that every round did."""
        return Time(self.median / n, self.lower / n, self.upper / n, self.rounds)


def train_time(spec: ModelSpec, ends: Ends, *, batch: int, seq_len: int, device: str) -> Time:
    """Of one AdamW step."""
    return timed(_training(spec, ends, batch, seq_len, device), device)


def decode_latency(spec: ModelSpec, ends: Ends, *, context: int, device: str) -> Time | None:
    """Of one token for one sequence after `context` tokens; None for a model that cannot decode.

    The mean of several tokens where layers run at a lower rate.
    """
    model, inputs = _built(spec, ends, 1, context, device)
    with torch.inference_mode():
        _, start = model(inputs)
        if start is None:
            return None
        steps, n = decoding(model, inputs, start)
        return timed(steps, device).each(n)


def decoding(model: Model, inputs: Tensor, start: State) -> tuple[Callable[[], None], int]:
    """A call that decodes on from the state of the inputs, and for how many tokens.

    As many as bring every layer back in step, of those at a lower rate too.
    """
    n = graph.period(model.architecture)

    def steps() -> None:
        state = start
        for _ in range(n):
            _, state = model(inputs[:, :1], state)

    return steps, n


def parameters(spec: ModelSpec, ends: Ends) -> int:
    """Trainable numbers of the built model."""
    return sum(p.numel() for p in build(spec, ends).parameters())


def state_bytes(
    spec: ModelSpec, ends: Ends, *, context: int, dtype: torch.dtype, device: str
) -> int:
    """Bytes of the tensors of a real state of one sequence after `context` tokens."""
    model, inputs = _built(spec, ends, 1, context, device)
    with torch.inference_mode():
        _, state = model.to(dtype)(inputs.to(dtype) if inputs.is_floating_point() else inputs)
    return held(state)


def held(state: State) -> int:
    """Bytes of the tensors of a state."""
    return sum(x.nbytes for x in tree_leaves(state) if isinstance(x, Tensor))


def train_memory(
    spec: ModelSpec, ends: Ends, *, batch: int, seq_len: int, device: str
) -> int | None:
    """Peak bytes of a second AdamW step by the device's allocator; None on a CPU, which keeps none.

    What was allocated before the model is left out.
    """
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    step = _training(spec, ends, batch, seq_len, device)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _built(
    spec: ModelSpec, ends: Ends, batch: int, seq_len: int, device: str
) -> tuple[Model, Tensor]:
    with torch.random.fork_rng():
        return build(spec, ends).to(device), ends.inputs(batch, seq_len).to(device)


def _training(
    spec: ModelSpec, ends: Ends, batch: int, seq_len: int, device: str
) -> Callable[[], None]:
    model, inputs = _built(spec, ends, batch, seq_len, device)
    targets = ends.targets(batch, seq_len).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        ends.loss(model(inputs)[0], targets).backward()
        optimizer.step()

    return step


def timed(
    call: Callable[[], object], device: str, *, warm_up: int = WARM_UP, limit: float = LIMIT
) -> Time:
    """Of a call, over rounds that end after `limit` seconds, the fewest apart."""
    for _ in range(warm_up):
        call()
    samples: list[float] = []
    end = time.perf_counter() + limit
    while len(samples) < ROUNDS and (len(samples) < FEWEST or time.perf_counter() < end):
        samples.append(once(call, device))
    lower, median, upper = statistics.quantiles(samples, n=4)
    return Time(median, lower, upper, len(samples))


def once(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, with what it starts on an accelerator."""
    clock = time.process_time if runs_alone(device) else time.perf_counter
    _finish(device)
    start = clock()
    call()
    _finish(device)
    return clock() - start


def runs_alone(device: str) -> bool:
    """Whether the process's own time is that of the work: what others take is left out of it."""
    return torch.device(device).type == "cpu" and torch.get_num_threads() == 1


def _finish(device: str) -> None:
    """Waits for what was started on an accelerator."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
