"""Pathfinder: are two discs the ends of one dashed path?   B batch, T = size * size pixels."""

import functools
import hashlib
import math
import sys
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import cache, snakes
from archsearch.tasks.classification import Classification
from archsearch.tasks.snakes import drawn, scenes
from archsearch.tasks.task import Purpose, stream

HELD_OUT = 256  # images of val, and of test: a standard error of .03 in accuracy
CHUNK = 64  # images drawn at once, half of each class
DASHES = {"easy": 6, "intermediate": 9, "hard": 14}


class Pathfinder(Classification, frozen=True):
    """Are the two discs of an image the ends of one dashed path? Read pixel after pixel.

    After Linsley et al. (2018, arXiv 1805.08315; code drewlinsley/pathfinder ab9c130) and Long
    Range Arena (Tay et al. 2021, arXiv 2011.04006), whose numbers these are, for images of 32 x 32:
    two paths of 6, 9 or 14 dashes, 2 pixels long and 1 broad, with gaps of 2; distractors of a
    third as many dashes; discs of radius 1.5 at three quarters of a dash's brightness; turns of
    weight cos^2; one disc is at the beginning of a path, the other at the end of the same path or
    of the other. A sequence is the rows of an image in one, 256 intensities a pixel.

    What differs: a path is kept from others by the distance of their middles, 2 pixels about, not
    by dilated masks, and both begin anywhere, not near one another; points are real numbers; half
    of the images of each set are positive. Reported accuracies are of other images, so of the same
    task but not of the same data.

    `size: 128` is Path-X, 16384 pixels: the same scenes drawn four times as large, where Long Range
    Arena drew new ones. It has 160000 images to train on; here they are drawn when first used, at
    4 ms each (11 ms at 128), once on a machine.
    """

    type: Literal["pathfinder"] = "pathfinder"
    size: int = Field(default=32, ge=32, le=256, description="Pixels of a side of an image.")
    difficulty: Literal["easy", "intermediate", "hard"] = Field(
        default="hard", description="Dashes of a path: 6, 9, 14. Long Range Arena reports hard."
    )
    distractors: int = Field(
        default=5, ge=0, description="Shorter paths beside the two; fewer where there is no room."
    )
    train: int = Field(default=4000, ge=2, description="Images to train on.")
    batch: int = Field(default=16, ge=1, description="Training images per step.")

    @property
    def ends(self) -> Ends:
        return Ends(Tokens(256), Classes(self.classes))

    @property
    def classes(self) -> int:
        return 2

    def prepare(self) -> None:
        self._chunk("val", 0)

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images that follow one another in train, from a random one on: few are drawn at once."""
        first = torch.randint(self.train, (1,), generator=generator)
        chosen = ((first + torch.arange(batch)) % self.train).tolist()
        found = [[x[i % CHUNK] for x in self._chunk("train", i // CHUNK)] for i in chosen]
        inputs, classes = (torch.stack(values) for values in zip(*found, strict=True))
        return inputs.long(), classes

    def examples(self, purpose: Purpose) -> tuple[Tensor, Tensor]:
        size = self.train if purpose == "train" else HELD_OUT
        chunks = [self._chunk(purpose, i) for i in range(math.ceil(size / CHUNK))]
        images, classes = (torch.cat(values) for values in zip(*chunks, strict=True))
        return images[:size], classes[:size]

    def floors(self) -> dict[str, dict[str, float]]:
        """Half of the images are of each class, by construction."""
        right = self.measures(torch.zeros(2, dtype=torch.long), torch.arange(2))
        return {"either class": right | {"loss": math.log(2)}}

    def fingerprint(self) -> str:
        """Covers a part of the evaluation sets, so that a changed generator shows."""
        digest = hashlib.sha256(self.model_dump_json().encode())
        for split in ("val", "test"):
            digest.update(self._chunk(split, 0)[0].numpy().tobytes())
        return digest.hexdigest()

    def _chunk(self, purpose: Purpose, number: int) -> tuple[Tensor, Tensor]:
        return _images(self.size, self.difficulty, self.distractors, purpose, number)


@functools.lru_cache(maxsize=1024)
def _images(
    size: int, difficulty: str, distractors: int, purpose: Purpose, number: int
) -> tuple[Tensor, Tensor]:
    """(CHUNK, size * size) intensities in uint8, and the classes: 1 where the discs are of a path.

    A function of its arguments, drawn once and kept.
    """
    asked = [size, difficulty, distractors, purpose, number]
    identity = {"asked": asked, "code": cache.code(sys.modules[__name__], snakes)}
    images, classes = cache.arrays("pathfinder", identity, lambda: _drawn(*asked))
    return images, classes


def _drawn(
    size: int, difficulty: str, distractors: int, purpose: Purpose, number: int
) -> list[Tensor]:
    seed = stream(purpose, f"pathfinder/{difficulty}/{distractors}/{number}").initial_seed()
    classes = np.arange(CHUNK) % 2
    shown = scenes(classes == 1, DASHES[difficulty], distractors, np.random.default_rng(seed))
    images = drawn(shown, size).reshape(CHUNK, -1)
    return [torch.from_numpy(images), torch.from_numpy(classes)]
