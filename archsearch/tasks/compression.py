"""Compression: all of a sequence from one state.   B batch, T time, V vocabulary."""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from archsearch.ends import Decoded, Ends, Tokens
from archsearch.tasks.synthetic import Synthetic, require_many


class Compression(Synthetic, frozen=True):
    """MAD's compression (Poli et al. 2024, arXiv 2403.17844; code athms/mad-lab 0f49a45).

    A sequence is T - 1 tokens, uniform of [0, V - 1), and the compression token (V - 1). A decoder
    is given what the model has at this one and says all T tokens (blocks/decoder.py): what a state
    holds. Scored are all, the last of them too, which is the same always. The decoder has T places,
    so there is no other length to evaluate at.

    MAD's baseline is V 16, T 32; its grid V 32, 64, 128 and T 64, 128, 256, one changed at a time.
    Its decoder reads the last layer as it is, this one what is normed for a head, as all heads do.

    Accuracy is the fraction of scored tokens that are right (micro; MAD's code: macro, by class).
    """

    causal: ClassVar[bool] = False
    rule: ClassVar[str] = "most frequent token"

    type: Literal["compression"] = "compression"
    vocab: int = Field(default=16, ge=3, description="Token ids: data, and the compression token.")
    length: int = Field(default=32, ge=2, description="Tokens of a sequence, training or not.")
    extrapolate: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        default=(), description="None: the decoder has as many places as a training sequence."
    )
    batch: int = Field(default=32, ge=1, description="Training sequences per step.")
    loss: Literal["masked"] = Field(
        default="masked", description="Trained are the answers, which are no next tokens."
    )

    @field_validator("extrapolate")
    @classmethod
    def _no_other_length(cls, multiples: tuple[int, ...]) -> tuple[int, ...]:
        if multiples:
            raise ValueError(
                f"compression decodes as many tokens as it was trained on; got {list(multiples)}, "
                "allowed: []. Make a task of another length"
            )
        return multiples

    @model_validator(mode="after")
    def _many(self) -> Self:
        data, told = self.length - 1, f"vocab ({self.vocab}) or length ({self.length})"
        require_many(self.choices**data, f"{data} tokens of {self.choices} ids", told)
        return self

    @property
    def ends(self) -> Ends:
        return Ends(Tokens(self.vocab), Decoded(self.length))

    @classmethod
    def shortens(cls) -> bool:
        """No: the decoder has a place for every token of the length."""
        return False

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def choices(self) -> int:
        return self.vocab - 1

    def draw(self, batch: int, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(self.choices, (batch, length), generator=rng)
        tokens[:, -1] = self.vocab - 1
        return tokens, tokens.clone()

    def guess(self, tokens: Tensor) -> Tensor:
        """The most frequent token of the data, the lowest of several; the last is known."""
        counts = (tokens[..., None] == torch.arange(self.choices)).sum(1)  # (B, V - 1)
        guesses = counts.argmax(1, keepdim=True).repeat(1, tokens.shape[1])
        guesses[:, -1] = self.vocab - 1
        return guesses
