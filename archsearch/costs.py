"""Costs, read off the code itself: the model is built without memory and traced.

FLOPs are counted by torch's FlopCounterMode on meta tensors (matrix products, and our operators by
their registered formulas; causal masks are not halved), bytes moved by summing what every operator
reads and writes (element-wise work has no FLOPs and would look free), state bytes by looking at the
state, peak training memory by replaying an AdamW step on fake tensors. So a user's own block needs
no line of cost code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker  # private: a test holds its figures
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from archsearch.graph import period
from archsearch.model import Model, build, build_meta
from archsearch.spec import ModelSpec


@dataclass(frozen=True)
class Cost:
    """Costs of a whole batch at a length; FLOPs and bytes, no averages.

    Attributes:
        parameters: trainable numbers.
        forward_flops: of one forward pass.
        train_flops: of a forward and a backward pass.
        decode_flops: of one more token for each sequence, after seq_len tokens; the mean of
            several where layers run at a lower rate, 0 where the model cannot decode.
        bytes_moved: bytes that the operators of a forward pass read and write, float32.
        state_bytes: what decoding carries after seq_len tokens.
        train_memory: peak of an AdamW step, parameters, gradients and optimiser state included;
            what an operator of ours allocates and frees within itself is not seen.
    """

    parameters: int
    forward_flops: int
    train_flops: int
    decode_flops: int
    bytes_moved: int
    state_bytes: int
    train_memory: int


def cost(spec: ModelSpec, *, batch: int, seq_len: int, vocab: int) -> Cost:
    """Everything that is known of a spec before it is trained."""
    model, tokens = _meta(spec, batch, seq_len, vocab)
    with _BytesMoved() as moved, torch.no_grad():
        _, state = model(tokens)
    with _flops() as forward, torch.no_grad():
        model(tokens)
    with _flops() as train:
        model(tokens)[0].sum().backward()
    steps = period(model.architecture)
    with _flops() as decode, torch.no_grad():
        after = state
        for _ in range(steps if state is not None else 0):
            _, after = model(tokens[:, :1], after)
    return Cost(
        parameters=_parameters(model),
        forward_flops=forward.get_total_flops(),
        train_flops=train.get_total_flops(),
        decode_flops=round(decode.get_total_flops() / steps),
        bytes_moved=moved.total,
        state_bytes=_nbytes(state),
        train_memory=train_memory(spec, batch=batch, seq_len=seq_len, vocab=vocab),
    )


def parameters(spec: ModelSpec, *, vocab: int) -> int:
    """Trainable numbers, the embedding of `vocab` tokens included."""
    return _parameters(build_meta(spec, vocab=vocab))


def forward_flops(spec: ModelSpec, *, batch: int, seq_len: int, vocab: int) -> int:
    """FLOPs of a forward pass over the whole batch."""
    model, tokens = _meta(spec, batch, seq_len, vocab)
    with _flops() as counter, torch.no_grad():
        model(tokens)
    return counter.get_total_flops()


def state_bytes(spec: ModelSpec, *, batch: int, seq_len: int, vocab: int) -> int:
    """Bytes of the state after seq_len tokens."""
    model, tokens = _meta(spec, batch, seq_len, vocab)
    with torch.no_grad():
        return _nbytes(model(tokens)[1])


def train_memory(spec: ModelSpec, *, batch: int, seq_len: int, vocab: int) -> int:
    """Peak bytes of a fused AdamW step with cross-entropy, its optimiser state already there."""
    tracker = MemTracker()
    with FakeTensorMode():
        model = build(spec, vocab=vocab)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for parameter in model.parameters():  # a first step makes the state, unseen
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        tokens = torch.zeros(batch, seq_len, dtype=torch.long)
        tracker.track_external(model, optimizer, tokens)
        with tracker:
            logits, _ = model(tokens)
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def _meta(spec: ModelSpec, batch: int, seq_len: int, vocab: int) -> tuple[Model, Tensor]:
    tokens = torch.zeros(batch, seq_len, dtype=torch.long, device="meta")
    return build_meta(spec, vocab=vocab), tokens


def _parameters(model: Model) -> int:
    return sum(p.numel() for p in model.parameters())


def _nbytes(tree: Any) -> int:
    """Bytes of the tensors in a tree; storage shared by two of them is counted twice."""
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def _flops() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False) as counter:
        yield counter


class _BytesMoved(TorchDispatchMode):
    """Sums the bytes of the tensors that operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += _nbytes((args, kwargs)) + _nbytes(out)
        return out
