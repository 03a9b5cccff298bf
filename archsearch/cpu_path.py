"""Meta tensors on the path that the CPU takes: shapes alone would choose another in one place.

Attention on meta tensors falls apart into products, with a score kept for every pair of tokens; on
a CPU, as on a GPU, a fused operator runs that keeps none. Within `CpuPath()` the CPU's own rule is
asked which of the two it would take, and that one is taken.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop,
    sdpa_flop,
)

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# torch counts its fused attention on every device but this one (pytorch issue 195460).
if FUSED not in flop_registry:
    register_flop_formula(FUSED, get_raw=True)(sdpa_flop)
    register_flop_formula(FUSED_BACKWARD, get_raw=True)(sdpa_backward_flop)


class CpuPath(TorchFunctionMode):
    """Attention as a CPU computes it, on meta tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The composition of torch itself, with the CPU's choice in place of that for meta tensors."""
    arguments = (query, key, value, attn_mask, dropout_p, is_causal)
    choose = torch.ops.aten._fused_sdp_choice.default
    options = {"scale": scale, "enable_gqa": enable_gqa}
    backend = choose._op_dk(torch._C.DispatchKey.CPU, *arguments, **options)
    if backend != SDPBackend.FLASH_ATTENTION.value:
        return F.scaled_dot_product_attention(*arguments, **options)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        like = {"dtype": query.dtype, "device": query.device}
        seen, unseen = (torch.scalar_tensor(value, **like) for value in (0.0, -torch.inf))
        attn_mask = torch.where(attn_mask, seen, unseen)
    return FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
