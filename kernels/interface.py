"""What the public functions share: argument checks, the choice of backend, packed sequences, names.

Everything a user can get wrong is a ValueError that names the operator, the argument, what came and
what is allowed.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

Backend = Literal["auto", "reference", "chunked", "triton"]

# The operators are registered under the name of the package they were imported in ("archsearch",
# "my_model"): an exported model carries a copy of these files, and it must be possible to load it
# beside archsearch, or beside another exported model, in one process.
NAMESPACE = re.sub(r"\W", "_", (__package__ or "kernels").removesuffix(".kernels"))


TRITON_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


def _runs_here(device: torch.device | None) -> bool:
    """Whether the Triton kernels have been checked, value by value, on a device like this."""
    if device is None or device.type != "cuda" or find_spec("triton") is None:
        return False
    from .launch import architecture
    from .tiles import RUN

    name = architecture(device)
    if name not in RUN and not torch.compiler.is_compiling():
        _warn_unchecked(name)
    return name in RUN


@cache
def _warn_unchecked(architecture: str) -> None:
    """Once for an architecture."""
    warnings.warn(
        f"no {architecture} has checked the Triton kernels yet, so backend 'auto' takes plain "
        "PyTorch, 'chunked'. backend='triton' runs them; `archsearch bench kernels` times both",
        stacklevel=5,
    )


def register_flops(name: str, formula: Callable[..., int]) -> None:
    """Tell FlopCounterMode what NAMESPACE::name costs; the formula receives shapes for tensors."""
    operator = getattr(getattr(torch.ops, NAMESPACE), name)
    flop_registry.pop(operator, None)  # a package imported afresh registers its operators again
    register_flop_formula(operator)(formula)


WORKSPACES: dict[object, Callable[..., int]] = {}
"""Formulas of register_workspace, by operator."""


def register_workspace(name: str, formula: Callable[..., int]) -> None:
    """Tell memory traces the most bytes that NAMESPACE::name holds at a time, results included.

    For an operator whose body cannot be run on shapes alone, or not soon; the others are looked
    into. The formula receives what the operator does.
    """
    WORKSPACES[getattr(getattr(torch.ops, NAMESPACE), name)] = formula


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of states and sums over time: float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def state_or_zeros(state: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """The state to start from, in the dtype that states are summed in."""
    dtype = accumulation_dtype(like)
    return like.new_zeros(shape, dtype=dtype) if state is None else state.to(dtype)


def differentiated(given: Sequence[Tensor]) -> bool:
    """Whether a gradient may be asked for, so that what it needs is to be kept.

    A tensor within vmap does not tell: whoever called vmap may differentiate what comes out.
    """
    if not torch.is_grad_enabled():
        return False
    within = torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]
    return within or any(tensor.requires_grad for tensor in given)


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    # PyTorch leaves autocast on inside a custom operator: the state would be summed in bfloat16.
    # Meta tensors have no autocast, and refuse to be asked.
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


class Arguments:
    """The arguments of one call, checked in turn: a size letter means the same in all of them."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self.sizes: dict[str, int] = {}
        self.device: torch.device | None = None

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.operator}: {message}")

    def tensor(self, name: str, value: object, shape: str) -> None:
        """Require a floating-point tensor of a shape such as "B T H K"; new letters are bound."""
        letters = shape.split()
        known = ", ".join(f"{a} = {self.sizes[a]}" for a in letters if a in self.sizes)
        allowed = f"({', '.join(letters)})" + (f" with {known}" if known else "")
        if not isinstance(value, Tensor):
            raise self.error(f"{name} must be a tensor {allowed}; got {type(value).__name__}")
        if not value.is_floating_point():
            raise self.error(f"{name} must have a floating-point dtype; got {value.dtype}")
        if value.device != (self.device or value.device):
            raise self.error(f"{name} must be on {self.device} as the others; got {value.device}")
        self.device = value.device
        new = {a: n for a, n in zip(letters, value.shape, strict=False) if a not in self.sizes}
        if 0 in new.values():
            raise self.error(f"{name} must be {allowed}, sizes >= 1; got {tuple(value.shape)}")
        self.sizes |= new
        if value.shape != torch.Size(self.sizes.get(a, 0) for a in letters):
            raise self.error(f"{name} must have shape {allowed}; got {tuple(value.shape)}")

    def backend(self, backend: str, *tensors: Tensor) -> Literal["reference", "chunked", "triton"]:
        """The backend that will run; what was asked for by name runs or is refused."""
        if backend not in get_args(Backend):
            allowed = ", ".join(map(repr, get_args(Backend)))
            raise self.error(f"backend must be one of {allowed}; got {backend!r}")
        if backend == "reference":
            return "reference"
        dtypes = {x.dtype for x in tensors}
        if backend == "auto":
            there = dtypes <= TRITON_DTYPES and _runs_here(self.device)
            return "triton" if there else "chunked"
        if backend == "triton":
            self._require_triton(dtypes)
            return "triton"
        return "chunked"

    def _require_triton(self, dtypes: set[torch.dtype]) -> None:
        if dtypes - TRITON_DTYPES:
            raise self.error(
                "backend 'triton' takes float32, bfloat16 and float16; got "
                f"{', '.join(sorted(map(str, dtypes - TRITON_DTYPES)))}: use 'chunked'"
            )
        if find_spec("triton") is None:
            raise self.error("backend 'triton' needs Triton: pip install triton, or use 'chunked'")
        from .launch import INTERPRETED

        if self.device is not None and self.device.type != "cuda" and not INTERPRETED:
            raise self.error(
                f"backend 'triton' needs tensors on a GPU; got {self.device}: use 'chunked', or "
                "set TRITON_INTERPRET=1 before Python starts to run the kernels on the CPU, slowly"
            )

    def packing(self, cu_seqlens: Tensor | None) -> list[int] | None:
        """The borders of packed sequences as Python numbers; binds their number, sequences."""
        if cu_seqlens is None:
            return None
        if self.sizes["B"] != 1:
            batch = self.sizes["B"]
            raise self.error(f"cu_seqlens packs sequences into a batch of 1; got B = {batch}")
        if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
            got = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
            raise self.error(f"cu_seqlens must be a tensor of int32 or int64; got {got}")
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
            got = tuple(cu_seqlens.shape)
            raise self.error(f"cu_seqlens must have shape (N + 1,) with N >= 1; got {got}")
        bounds, T = cu_seqlens.tolist(), self.sizes["T"]
        if bounds[0] != 0 or bounds[-1] != T or any(a > b for a, b in pairwise(bounds)):
            raise self.error(
                f"cu_seqlens must run from 0 to T = {T} without decreasing; got {bounds}"
            )
        self.sizes["sequences"] = len(bounds) - 1
        return bounds

    def decay(self, log_decay: object, *shapes: str) -> None:
        """Require None, or a tensor of the one of these shapes that has as many dimensions."""
        if log_decay is None:
            return
        by_dim = {len(shape.split()): shape for shape in shapes}
        if not isinstance(log_decay, Tensor) or log_decay.dim() not in by_dim:
            tensor = isinstance(log_decay, Tensor)
            got = tuple(log_decay.shape) if tensor else type(log_decay).__name__
            *others, last = ("(H,)" if s == "H" else f"({', '.join(s.split())})" for s in shapes)
            allowed = f"{', '.join(['None', *others])} or {last}"
            raise self.error(f"log_decay must be {allowed}; got {got}")
        self.tensor("log_decay", log_decay, by_dim[log_decay.dim()])

    def heads_per_group(self) -> int:
        """How many heads of v share one of the G heads of q and k."""
        H, G = self.sizes["H"], self.sizes["G"]
        if H % G:
            raise self.error(
                f"the heads of v must be a multiple of those of q and k; got H = {H} and G = {G}"
            )
        return H // G


def decay_per_step(log_decay: Tensor | None, v: Tensor) -> Tensor:
    """Every kind of decay as (B or 1, T or 1, H, K or 1): the PyTorch forms know no kinds."""
    if log_decay is None:
        return v.new_zeros(1, 1, v.shape[2], 1, dtype=accumulation_dtype(v))
    if log_decay.dim() == 1:
        return log_decay[None, None, :, None]
    return log_decay if log_decay.dim() == 4 else log_decay[..., None]


def over_sequences(
    run: Callable[..., tuple[Tensor, Tensor]],
    tensors: Sequence[Tensor],
    bounds: list[int],
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Call run(*tensors, state) on packed sequences, those of like length together as a batch.

    They are padded with zeros to the longest of them, less than twice their length; a step of
    zeros must leave the state as it is.
    """
    lengths = [end - start for start, end in pairwise(bounds)]
    alike: dict[int, list[int]] = {}
    for sequence, length in enumerate(lengths):
        alike.setdefault(length.bit_length(), []).append(sequence)
    empty, groups = alike.pop(0, []), list(alike.values())
    device = tensors[0].device
    outputs, finals, steps = [], [], []
    for members in groups:
        length = torch.tensor([lengths[i] for i in members])[:, None]
        ahead = torch.arange(int(length.max()))
        step, real = torch.tensor([bounds[i] for i in members])[:, None] + ahead, ahead < length
        index, mask = (step * real).to(device), real.to(device)
        state = None if initial_state is None else initial_state[members]
        output, final = run(*(_padded(x[0], index, mask) for x in tensors), state)
        outputs.append(output.flatten(0, 1).index_select(0, mask.flatten().nonzero()[:, 0]))
        finals.append(final)
        steps.append(step[real])
    like = finals[0]
    rest = like.new_zeros(len(empty), *like.shape[1:])  # an empty sequence ends where it starts
    finals.append(rest if initial_state is None else initial_state[empty].to(like))
    order = torch.tensor([i for members in (*groups, empty) for i in members])
    output = torch.cat(outputs).index_select(0, torch.cat(steps).argsort().to(device))
    return output[None], torch.cat(finals).index_select(0, order.argsort().to(device))


def _padded(x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Rows of x (T, ...) by index, (sequences, steps, ...); zeros where the mask is False."""
    rows = x.index_select(0, index.flatten()).unflatten(0, index.shape)
    return rows.where(mask.view(*mask.shape, *[1] * (x.dim() - 1)), rows.new_zeros(()))
