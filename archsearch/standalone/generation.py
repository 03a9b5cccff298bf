"""Generation: one token at a time from the state, never from the tokens seen before."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yields `steps` tokens (B,) int64 that continue a prompt (B, T) int64, T >= 1.

    Args:
        model: logits, state = model(tokens, state).
        prompt: what to continue; it is read once.
        steps: how many tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        generator: of the draws.

    Raises:
        ValueError: the model gives no state to go on from.
    """
    logits, state = model(prompt)
    if state is None:
        raise ValueError("this model sees the future: it cannot continue a prompt")
    for _ in range(steps):
        last = logits[:, -1]
        if temperature == 0:
            token = last.argmax(-1)
        else:
            p = torch.softmax(last / temperature, dim=-1)
            token = torch.multinomial(p, 1, generator=generator).squeeze(-1)
        yield token
        logits, state = model(token[:, None], state)
