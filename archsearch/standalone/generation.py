"""Generation: read a prompt, draw a token, go on from the state, never from the tokens before.

    logits, state = prefill(model, prompt, chunk=512)       of the token after the prompt
    token = sample(logits, temperature=0.7, top_p=0.9)
    logits, state = prefill(model, token[:, None], state)   and so on: `generate` does it

B batch, T time, V vocabulary. A state is tuples of tensors, all that is kept of what was read:
`torch.save(state, "state.pt")` puts it away, `torch.load("state.pt")` goes on another day.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Any, ...]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    steps: int,
    *,
    state: State | None = None,
    chunk: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yields `steps` tokens (B,) int64 that continue a prompt (B, T) int64, T >= 1.

    Args:
        model: logits, state = model(tokens, state).
        prompt: what to continue; it is read once.
        steps: how many tokens.
        state: of what was read before the prompt.
        chunk: as in `prefill`.
        temperature: as in `distribution`.
        top_k: as in `distribution`.
        top_p: as in `distribution`.
        generator: of the draws.

    Raises:
        ValueError: the model gives no state to go on from, or a setting makes no sense.
    """
    logits, state = prefill(model, prompt, state, chunk=chunk)
    for _ in range(steps):
        token = sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        yield token
        logits, state = prefill(model, token[:, None], state)


def prefill(
    model: nn.Module, tokens: Tensor, state: State | None = None, *, chunk: int | None = None
) -> tuple[Tensor, State]:
    """Reads tokens (B, T) int64, T >= 1: (logits (B, V) of the token after them, the state there).

    Args:
        model: logits, state = model(tokens, state).
        tokens: what comes next.
        state: of what was read before, None at the start.
        chunk: tokens that are read at a time, all if None; of a long prompt only as many are in
            memory. The result is the same but for rounding.

    Raises:
        ValueError: there are no tokens, `chunk` is below 1, or the model sees the future.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens of shape {(*tokens.shape,)}; must be (B, T), T >= 1")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; must be 1 or more, or None")
    logits = tokens
    for piece in tokens.split(chunk or tokens.shape[1], dim=1):
        logits, state = model(piece, state)
        if state is None:
            raise ValueError("this model sees the future: it cannot continue a prompt")
    assert state is not None
    return logits[:, -1], state


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws a token of each row of logits: (B,) int64.

    At temperature 0 it is the likeliest one, the first of several, and nothing is drawn.

    Args:
        logits: of the model, (B, V).
        temperature: as in `distribution`.
        top_k: as in `distribution`.
        top_p: as in `distribution`.
        generator: of the draws.
    """
    p = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)


def distribution(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Probabilities (B, V) of the next token, float32, of float64 logits float64.

        p = softmax(logits / temperature)     restricted to top_k, then to top_p, and normalised

    Args:
        logits: of the model, (B, V).
        temperature: below 1 sharpens, 0 leaves the likeliest alone.
        top_k: only the k likeliest (Fan et al. 2018), and what is as likely as the last of them.
        top_p: only the fewest likeliest whose probabilities add up to top_p (nucleus sampling,
            Holtzman et al. 2020).

    Raises:
        ValueError: a temperature below 0, a top_k below 1, a top_p outside (0, 1].
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; must be 0 or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; must be 1 or more, or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; must be above 0, 1 at most, or None")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = torch.softmax(logits / temperature, dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = p.sort(dim=-1, descending=True)
        likelier = ordered.cumsum(-1) - ordered  # mass of those before it
        p = p.scatter(-1, order, ordered.masked_fill(likelier >= top_p, 0))
    return p / p.sum(-1, keepdim=True)
