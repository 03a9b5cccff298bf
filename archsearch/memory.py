"""Peak training memory, followed on meta tensors: every storage from its birth to its end.

The step that is followed is training's own, on the operators that a CPU would run; its
optimiser stands there already, as from the second step on. An operator written in Python, ours or a
user's, is opened up: its body runs once for each set of shapes, and the most that it holds at a
time counts; unless it has told that by a formula (kernels.interface.register_workspace).
Not seen: what an operator written in C++ allocates and frees within itself, and how an allocator
rounds.
"""

import functools
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from archsearch import shapes
from archsearch.cpu_path import CpuPath
from archsearch.ends import Ends
from archsearch.kernels.interface import WORKSPACES
from archsearch.model import build_meta
from archsearch.spec import ModelSpec

PYTHON = torch._C.DispatchKey.CompositeExplicitAutograd
"""Where torch.library keeps an operator that is written in Python for all devices."""


@dataclass(frozen=True)
class TrainMemory:
    """Bytes at the moment of an AdamW step when most are held.

    Attributes:
        parameters: weights and buffers.
        gradients: of the parameters, as far as they are there by then.
        optimizer: AdamW's two moments and a count of steps for each parameter.
        activations: all else: what the backward pass needs, and what is being computed.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


class Storages(TorchDispatchMode):
    """Follows the bytes of the storages that operators make, beyond those known before."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.sizes = {storage._cdata: 0 for storage in _storages(known)}
        self.gradients: set[int] = set()
        self.now = self.now_gradients = self.peak = self.peak_gradients = 0

    def gradient(self, parameter: Tensor) -> None:
        """Counts the parameter's gradient as one from here on; a hook."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key not in self.gradients:
            self.gradients.add(key)
            self.now_gradients += self.sizes[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func):  # still whole inside of an operator that is opened up
            with self:
                return func.decompose(*args, **kwargs)
        if is_python(func):
            self._reach(self.now + workspace(func, args, kwargs), self.now_gradients)
        out = shapes.run(func, args, kwargs)
        for storage in _storages(out):
            if (key := storage._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.now += self.sizes[key]
                weakref.finalize(storage, self._free, key).atexit = False
        self._reach(self.now, self.now_gradients)
        return out

    def _reach(self, now: int, gradients: int) -> None:
        if now > self.peak:
            self.peak, self.peak_gradients = now, gradients

    def _free(self, key: int) -> None:
        size = self.sizes.pop(key)
        self.now -= size
        if key in self.gradients:
            self.gradients.remove(key)
            self.now_gradients -= size


def train_memory(spec: ModelSpec, ends: Ends, *, batch: int, seq_len: int) -> TrainMemory:
    """The peak of a training step, and what it consists of."""
    model = build_meta(spec, ends)
    with torch.device("meta"):
        inputs, targets = ends.inputs(batch, seq_len), ends.targets(batch, seq_len)
    weights = [*model.parameters()]
    standing = [*weights, *model.buffers()]
    with CpuPath(), Storages((standing, inputs, targets)) as storages:
        for parameter in weights:
            parameter.register_post_accumulate_grad_hook(storages.gradient)
        ends.loss(model(inputs)[0], targets).backward()
    own = sum(x.nbytes for x in standing)
    adam = sum(2 * p.nbytes + 4 for p in weights)
    rest = storages.peak - storages.peak_gradients + inputs.nbytes + targets.nbytes
    return TrainMemory(own, storages.peak_gradients, adam, rest)


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether a CPU runs an operator as others; some are told as others and have their own too."""
    return _has(func, "CompositeImplicitAutograd") and not _has(func, "CPU")


@functools.cache
def is_python(func: Any) -> bool:
    """Whether an operator is written in Python, for all devices."""
    return func.namespace not in ("aten", "prim", "prims") and _has(func, PYTHON.name)


def _has(func: Any, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def workspace(func: Any, args: Any, kwargs: Any) -> int:
    """The most bytes that an operator written in Python holds, its results included."""
    leaves, spec = tree_flatten((args, kwargs))
    key = func, spec, tuple(map(_look, leaves))
    if key not in _workspaces:
        if (formula := WORKSPACES.get(func._overloadpacket)) is not None:
            _workspaces[key] = formula(*args, **kwargs)
        else:
            _workspaces[key] = _inside(func, args, kwargs)
    return _workspaces[key]


_workspaces: dict[Any, int] = {}


def _inside(func: Any, args: Any, kwargs: Any) -> int:
    """The most bytes that an operator's body holds; 0, with a warning, if it needs values."""
    try:
        with Storages((args, kwargs)) as inside:
            func._op_dk(PYTHON, *args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"{func}: its body cannot be run on shapes alone ({reason}), so of the memory that it "
            "takes only its results count; give WORKSPACES of archsearch.kernels.interface a "
            "formula for it",
            stacklevel=2,
        )
        return 0
    return inside.peak


def _look(x: Any) -> Any:
    return (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor))
