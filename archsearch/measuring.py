"""Costs measured on the device: times, and what a built model really holds.

A time is the median over rounds after a warm-up, with its quartiles. The machine is as busy as it
is: what else runs there, other workers too, is in the times.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from archsearch import graph
from archsearch.model import Model, build
from archsearch.spec import ModelSpec
from archsearch.training import loss_of

WARM_UP = 3
ROUNDS = 20
LIMIT = 5.0
"""Seconds after which no further round begins; five there always are."""


@dataclass(frozen=True)
class Time:
    """Seconds: the median of the rounds, and the quartiles around it."""

    median: float
    lower: float
    upper: float


def train_time(spec: ModelSpec, *, batch: int, seq_len: int, vocab: int, device: str) -> Time:
    """Of one AdamW step with cross-entropy."""
    return _timed(_training(spec, batch, seq_len, vocab, device), device)


def decode_latency(spec: ModelSpec, *, context: int, vocab: int, device: str) -> Time | None:
    """Of one token for one sequence after `context` tokens; None for a model that cannot decode.

    The mean of several tokens where layers run at a lower rate.
    """
    model, tokens = _built(spec, 1, context, vocab, device)
    n = graph.period(model.architecture)
    with torch.inference_mode():
        _, start = model(tokens)
        if start is None:
            return None

        def steps() -> None:
            state = start
            for _ in range(n):
                _, state = model(tokens[:, :1], state)

        whole = _timed(steps, device)
    return Time(whole.median / n, whole.lower / n, whole.upper / n)


def parameters(spec: ModelSpec, *, vocab: int) -> int:
    """Trainable numbers of the built model."""
    return sum(p.numel() for p in build(spec, vocab=vocab).parameters())


def state_bytes(
    spec: ModelSpec, *, context: int, vocab: int, dtype: torch.dtype, device: str
) -> int:
    """Bytes of the tensors of a real state of one sequence after `context` tokens."""
    model, tokens = _built(spec, 1, context, vocab, device)
    with torch.inference_mode():
        _, state = model.to(dtype)(tokens)
    return sum(x.nbytes for x in tree_leaves(state) if isinstance(x, Tensor))


def train_memory(
    spec: ModelSpec, *, batch: int, seq_len: int, vocab: int, device: str
) -> int | None:
    """Peak bytes of a second AdamW step by the device's allocator; None on a CPU, which keeps none.

    What was allocated before the model is left out.
    """
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    step = _training(spec, batch, seq_len, vocab, device)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _built(
    spec: ModelSpec, batch: int, seq_len: int, vocab: int, device: str
) -> tuple[Model, Tensor]:
    with torch.random.fork_rng():
        model = build(spec, vocab=vocab).to(device)
        tokens = torch.randint(vocab, (batch, seq_len)).to(device)
    return model, tokens


def _training(
    spec: ModelSpec, batch: int, seq_len: int, vocab: int, device: str
) -> Callable[[], None]:
    model, tokens = _built(spec, batch, seq_len, vocab, device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, tokens, tokens).backward()
        optimizer.step()

    return step


def _timed(call: Callable[[], object], device: str) -> Time:
    for _ in range(WARM_UP):
        call()
    samples: list[float] = []
    end = time.perf_counter() + LIMIT
    while len(samples) < ROUNDS and (len(samples) < 5 or time.perf_counter() < end):
        _finish(device)
        start = time.perf_counter()
        call()
        _finish(device)
        samples.append(time.perf_counter() - start)
    lower, median, upper = statistics.quantiles(samples, n=4)
    return Time(median, lower, upper)


def _finish(device: str) -> None:
    """Waits for what was started on an accelerator."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
