"""Images, pixel after pixel: Long Range Arena's image task, on any data.   N images."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import tables
from archsearch.tasks.classification import Classification
from archsearch.tasks.corpus import SPLITS, split_of
from archsearch.tasks.task import Purpose, TaskError, path

INTENSITIES = 256
LEAST = 5  # images of a split
ALLOWED = (
    "Allowed: a folder with one of image files for each class, or with such folders named for "
    "their splits; a .parquet file or a folder of them; or hub:NAME"
)


class Images(Classification, frozen=True):
    """Which class is an image of, read row by row as grey pixels?

    Long Range Arena (Tay et al. 2021, arXiv 2011.04006) has CIFAR-10 (Krizhevsky 2009), 32 x 32
    pixels of 256 intensities: `{data: "hub:uoft-cs/cifar10", image: img}`, with a network; of its
    images for training a tenth is val. `sequential_digits` is the sibling that needs no download.
    """

    type: Literal["images"] = "images"
    data: Annotated[str, path(hub=True)] = Field(
        min_length=1,
        description="The path of a folder with one of image files for each class, or of a .parquet "
        'file or folder of them; or "hub:NAME", "hub:NAME:CONFIG" of a data set on the Hugging '
        "Face Hub. A relative path starts at the folder of the YAML file.",
    )
    image: str = Field(default="image", description="The column of a table that holds the images.")
    label: str = Field(default="label", description="The column that holds their classes.")
    size: int = Field(default=32, ge=2, description="Pixels of a side; others are scaled to it.")
    batch: int = Field(default=32, ge=1, description="Training images per step.")

    @property
    def ends(self) -> Ends:
        return Ends(Tokens(INTENSITIES), Classes(self.classes))

    @property
    def classes(self) -> int:
        return len(self._images.classes)

    @property
    def _images(self) -> "Pixels":
        return _load(self.data, (self.image, self.label), self.size)

    def examples(self, purpose: Purpose) -> tuple[Tensor, Tensor]:
        return self._images.splits[purpose]


@dataclass(frozen=True, eq=False)
class Pixels:
    """(N, size^2) intensities in uint8 and (N,) classes of each split; the names of the classes."""

    splits: dict[Any, tuple[Tensor, Tensor]]
    classes: tuple[Any, ...]


@functools.lru_cache(maxsize=4)
def _load(source: str, columns: tuple[str, str], size: int) -> Pixels:
    try:
        import PIL.Image  # noqa: F401  (the library of tables reads images with it)
    except ImportError as error:
        raise TaskError(
            "images: they are read with pillow, which is not installed; pip install "
            "'archsearch[data]', or drop the task"
        ) from error
    parts: dict[str, list[tuple[bytes, Any]]] = {split: [] for split in SPLITS}
    try:
        for split, pixels, label in _rows(source, columns, size):
            parts[split].append((pixels, label))
    except TaskError:
        raise
    except (OSError, ValueError) as error:
        raise TaskError(f"images: data {source!r} cannot be read: {error}. {ALLOWED}") from error
    sizes = {split: len(part) for split, part in parts.items()}
    classes = sorted({label for _, label in parts["train"]})
    strange = {label for split in SPLITS for _, label in parts[split]} - {*classes}
    if min(sizes.values()) < LEAST or len(classes) < 2 or strange:
        raise TaskError(
            f"images: data {source!r}: its splits have {sizes} images, of the classes {classes} in "
            f"train and {sorted(strange)} elsewhere alone; {LEAST} of each split and two classes "
            "that train has are the least. A hash of an image tells its split, 8 to 1 to 1"
        )
    numbers = {label: number for number, label in enumerate(classes)}
    splits = {
        split: (
            torch.from_numpy(np.frombuffer(b"".join(x for x, _ in part), np.uint8).copy()).view(
                len(part), -1
            ),
            torch.tensor([numbers[label] for _, label in part]),
        )
        for split, part in parts.items()
    }
    return Pixels(splits, tuple(classes))


def _rows(source: str, columns: tuple[str, str], size: int) -> Iterator[tuple[str, bytes, Any]]:
    """(split, pixels, label) of every image; a hash of the pixels, where the data has no split."""
    found = tables.load(source, "images", images=True)
    for own, table in found.items():
        if absent := tables.missing([*columns], table.column_names):
            raise TaskError(
                f"images: data {source!r} has no columns {absent}; it has {table.column_names}. "
                "Name the right ones under image and label"
            )
        names = getattr(table.features[columns[1]], "names", None)
        for row in table:
            image, label = row[columns[0]], row[columns[1]]
            if not hasattr(image, "convert"):
                raise ValueError(f"column {columns[0]!r} holds {type(image).__name__}, no images")
            pixels = image.convert("L").resize((size, size)).tobytes()
            split = split_of(hashlib.sha256(pixels).digest()) if own == "train" else own
            yield own if split in found else split, pixels, names[label] if names else label
