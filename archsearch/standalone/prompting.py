"""A prompt on the command line: text where tokens are bytes, else ids with spaces between."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .generation import generate

BYTES = 256
"""A vocabulary of so many tokens is taken for that of bytes."""


def ids(prompt: str, vocab: int) -> list[int]:
    """The tokens of a prompt. ValueError if there are none, or one is no token."""
    try:
        found = [*prompt.encode()] if vocab == BYTES else [int(word) for word in prompt.split()]
    except ValueError:
        found = []
    if not found or not all(0 <= token < vocab for token in found):
        form = "text" if vocab == BYTES else f"ids below {vocab} with spaces between"
        raise ValueError(f"the prompt {prompt!r} is no token; it must be {form}")
    return found


def continued(
    model: nn.Module, prompt: str, vocab: int, steps: int, *, seed: int = 0, **settings: Any
) -> Iterator[bytes]:
    """What is to be printed, token by token: first the prompt, then what continues it.

    Args:
        model: logits, state = model(tokens, state).
        prompt: text, or ids.
        vocab: how many tokens there are.
        steps: tokens to add.
        seed: of the draws.
        settings: as in `generate`.

    Raises:
        ValueError: the prompt has no tokens, or a setting makes no sense.
    """
    device = next(model.parameters()).device
    tokens = torch.tensor([ids(prompt, vocab)], device=device)
    draws, head = torch.Generator(device).manual_seed(seed), prompt.encode()
    for token in generate(model, tokens, steps, generator=draws, **settings):
        yield head + (bytes([int(token)]) if vocab == BYTES else f" {int(token)}".encode())
        head = b""  # with the first token: a mistake in the settings is told before
    yield head + b"\n"
