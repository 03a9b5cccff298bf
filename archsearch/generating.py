"""A quick look at what a model writes: `archsearch generate STUDY "a prompt"`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archsearch import preflight
from archsearch.ends import Tokens
from archsearch.errors import UserError
from archsearch.origin import origin_of
from archsearch.standalone.prompting import continued


def generating(
    source: str | Path, prompt: str, steps: int, *, trial: int | None, device: str, **settings: Any
) -> tuple[str, Iterator[bytes]]:
    """Whose words these are, and the prompt continued, token by token.

    Args:
        source: a study's folder, or a spec file, whose weights are random.
        prompt: text where tokens are bytes, else ids with spaces between.
        steps: tokens to add.
        trial: a trial of the study's in place of its best candidate.
        device: where it runs.
        settings: of the draws, as in `archsearch.standalone.generation.generate`, and their seed.

    Raises:
        UserError: no weights, no such device, a model that writes no tokens, or a setting without
            sense.
    """
    preflight.require_device(device)
    origin = origin_of(source, trial)
    reads = origin.ends.reads
    if not (origin.ends.tied and isinstance(reads, Tokens) and origin.spec.causal):
        _, given = origin.ends.shapes
        sees = "" if origin.spec.causal else ", from the future too"
        raise UserError(f"{source}: {origin.told}, gives {given}{sees}: it continues no prompt")
    pieces = continued(origin.model().to(device), prompt, reads.vocab, steps, **settings)
    return origin.told, _told(pieces)


def _told(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, a mistake in what was asked told as such."""
    try:
        yield from pieces
    except ValueError as error:
        raise UserError(str(error)) from None
