"""Witten-Bell byte n-grams: what counting alone reaches.

    p_k(c | h) = (n(h c) + t(h) p_{k-1}(c | h')) / (n(h) + t(h)),    p_{-1} = 1 / 256

h is the k bytes before c, h' all of them but the oldest, n counts, and t(h) is the number of
distinct bytes seen after h. Where h was never seen, p_k is p_{k-1}. (Witten and Bell 1991, method
C, in the interpolated form of Chen and Goodman 1998.)
"""

import torch
from torch import Tensor


def ladder(train: Tensor, windows: Tensor, orders: int = 4) -> list[float]:
    """Bits per byte of windows[:, 1:] under orders 0, 1, ...; no context reaches across a row.

    Args:
        train: (N, S) bytes to count in.
        windows: (W, T + 1) bytes; as for a model, the first of a row is context only.
        orders: how many rungs, at most 7 (an n-gram is coded in one int64).
    """
    p = torch.full(windows[:, 1:].shape, 1 / 256, dtype=torch.float64)
    bits = []
    for order in range(orders):
        grams, counts = _grams(train, order + 1).unique(return_counts=True)  # sorted
        contexts, owner, distinct = (grams >> 8).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        totals = torch.zeros_like(contexts).index_add_(0, owner, counts)

        asked = _grams(windows, order + 1)[:, -p.shape[1] :]
        lower = p[:, p.shape[1] - asked.shape[1] :]  # a view: a row's first bytes have less context
        n, t = _find(asked >> 8, contexts, totals), _find(asked >> 8, contexts, distinct)
        mixed = (_find(asked, grams, counts) + t * lower) / (n + t).clamp_(min=1)
        lower.copy_(torch.where(n > 0, mixed, lower))
        bits.append(-p.log2().mean().item())
    return bits


def _grams(rows: Tensor, n: int) -> Tensor:
    """(N, S - n + 1): the n bytes that end at each position as one integer, the newest lowest."""
    width = rows.shape[1] - n + 1
    codes = torch.zeros(len(rows), width, dtype=torch.int64)
    for i in range(n):
        codes = (codes << 8) | rows[:, i : i + width]
    return codes


def _find(asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """values[i] where asked is keys[i], 0 where it is no key; keys are sorted."""
    i = torch.searchsorted(keys, asked.contiguous()).clamp_(max=len(keys) - 1)
    return torch.where(keys[i] == asked, values[i], 0)
