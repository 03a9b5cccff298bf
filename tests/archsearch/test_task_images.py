"""Images: folders, tables and the Hub; pixels in their order; what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import TaskError
from archsearch.tasks.corpus import SPLITS, split_of
from archsearch.tasks.images import Images

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


def pictures(count: int = 120, size: int = 6) -> list[tuple[np.ndarray, str]]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (count, size, size), np.uint8)
    return [(picture, ("cat", "dog")[i % 2]) for i, picture in enumerate(grey)]


def as_folder(root: Path, rows: list[tuple[np.ndarray, str]]) -> str:
    for i, (picture, label) in enumerate(rows):
        path = root / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return str(root)


def found(task: Images, split: Any) -> set[tuple[bytes, str]]:
    names = task._images.classes
    pairs = zip(*task.examples(split), strict=True)
    return {(x.numpy().tobytes(), names[y]) for x, y in pairs}


def test_every_image_is_in_the_split_of_its_hash(tmp_path: Path) -> None:
    rows = pictures()
    task = Images(data=as_folder(tmp_path / "data", rows), size=6)
    task.prepare()
    assert task.ends == Ends(Tokens(256), Classes(2))
    for split in SPLITS:
        expected = {
            (picture.tobytes(), label)
            for picture, label in rows
            if split_of(hashlib.sha256(picture.tobytes()).digest()) == split
        }
        assert found(task, split) == expected


def test_the_splits_of_a_folder_are_kept(tmp_path: Path) -> None:
    rows = pictures()
    as_folder(tmp_path / "data" / "train", rows[:90])
    as_folder(tmp_path / "data" / "test", rows[90:])
    task = Images(data=str(tmp_path / "data"), size=6)
    assert found(task, "test") == {(picture.tobytes(), label) for picture, label in rows[90:]}
    rest = found(task, "train") | found(task, "val")
    assert rest == {(picture.tobytes(), label) for picture, label in rows[:90]}


def test_a_table_of_images_by_its_columns(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Pictures

    rows = pictures()
    features = Features({"img": Pictures(), "kind": ClassLabel(names=["cat", "dog"])})
    pictured = {"img": [Image.fromarray(x) for x, _ in rows], "kind": [y for _, y in rows]}
    path = tmp_path / "images.parquet"
    Dataset.from_dict(pictured, features=features).to_parquet(path)
    by_table = Images(data=str(path), image="img", label="kind", size=6)
    by_folder = Images(data=as_folder(tmp_path / "data", rows), size=6)
    assert all(found(by_table, split) == found(by_folder, split) for split in SPLITS)


def test_colours_are_greyed_and_sizes_made_one(tmp_path: Path) -> None:
    rows = [(np.dstack([picture] * 3), label) for picture, label in pictures(size=12)]
    task = Images(data=as_folder(tmp_path / "data", rows), size=6)
    inputs, _ = task.examples("train")
    assert inputs.shape[1] == 36 and inputs.dtype == torch.uint8
    grey = Image.fromarray(rows[0][0]).convert("L").resize((6, 6)).tobytes()
    assert any(grey == pixels for split in SPLITS for pixels, _ in found(task, split))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pandas.DataFrame({"a": [1], "label": [0]}).to_parquet(path)
    with pytest.raises(
        TaskError,
        match=r"^images: data '[^ ]*' has no columns \['image'\]; it has \['a', 'label'\]",
    ):
        Images(data=str(path)).prepare()
    with pytest.raises(TaskError, match=r"column 'a' holds int, no images\. Allowed: a folder"):
        Images(data=str(path), image="a").prepare()


@pytest.mark.parametrize("rows", [pictures(8), [(x, "cat") for x, _ in pictures()]])
def test_too_few(rows: list[tuple[np.ndarray, str]], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"its splits have \{.*two classes .* are the least"):
        Images(data=as_folder(tmp_path / "data", rows), size=6).prepare()


def test_what_is_no_image(tmp_path: Path) -> None:
    root = Path(as_folder(tmp_path / "data", pictures()))
    (root / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(TaskError, match=r"cannot be read: cannot identify image file"):
        Images(data=str(root)).prepare()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot be read: its name ends in ''\. Allowed: a fold"):
        Images(data=str(tmp_path / "gone")).prepare()


def test_what_the_library_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its errors are no OSErrors and no ValueErrors."""
    from datasets.exceptions import DatasetGenerationError

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise DatasetGenerationError("bad metadata")

    root = as_folder(tmp_path / "data", pictures())
    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(TaskError, match=r"cannot be read: bad metadata\. Allowed: a folder"):
        Images(data=root).prepare()
