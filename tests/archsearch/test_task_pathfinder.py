"""Pathfinder: discs, distances and classes found anew in the scenes, and in the images drawn."""

import itertools
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import pathfinder, stream
from archsearch.tasks.pathfinder import Pathfinder
from archsearch.tasks.snakes import Scenes, drawn, scenes

torch.set_num_threads(1)

N = 36
SAME = np.arange(N) % 3 == 0
FINE = 8  # cells to a unit, when paths are drawn here without gaps


@pytest.fixture(scope="module")
def shown() -> Scenes:
    return scenes(SAME, 14, 5, np.random.default_rng(0))


def line(path: np.ndarray, step: float = 0.05) -> np.ndarray:
    """Points along a path, (joints, 2), close to one another."""
    parts = [a + (b - a) * np.arange(0, 1, step / 4)[:, None] for a, b in itertools.pairwise(path)]
    return np.concatenate([*parts, path[-1:]])


def paths_of(shown: Scenes, i: int) -> list[np.ndarray]:
    return [*shown.paths[i], *(p for p in shown.distractors[i] if np.isfinite(p).all())]


def connected(shown: Scenes, i: int) -> bool:
    """Whether one walks from disc to disc on the ink, all paths drawn as lines without gaps."""
    ink = np.zeros((32 * FINE + 2, 32 * FINE + 2), bool)
    for path in paths_of(shown, i):
        x, y = (line(path) * FINE).astype(int).T
        ink[y, x] = True
    (begin, goal) = ((shown.discs[i] * FINE).astype(int)).tolist()
    assert ink[begin[1], begin[0]] and ink[goal[1], goal[0]]
    waiting, seen = deque([tuple(begin)]), {tuple(begin)}
    while waiting:
        x, y = waiting.popleft()
        for near in [(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]:
            if near not in seen and ink[near[1], near[0]]:
                seen.add(near)
                waiting.append(near)
    return tuple(goal) in seen


# --- scenes -----------------------------------------------------------------------------------


def test_discs_are_connected_where_the_class_says_so(shown: Scenes) -> None:
    assert [connected(shown, i) for i in range(N)] == SAME.tolist()


def test_paths_keep_their_distance(shown: Scenes) -> None:
    for i in range(N):
        lines = [line(path, step=0.4) for path in paths_of(shown, i)]
        for a, one in enumerate(lines):
            for other in lines[:a]:
                assert np.linalg.norm(one[:, None] - other, axis=-1).min() > 1.4


def test_no_path_crosses_itself(shown: Scenes) -> None:
    """Dashes that do not follow one another are as far apart as those of two paths."""
    for path in shown.paths.reshape(-1, 15, 2):
        dashes = [line(path[k : k + 2], step=0.4) for k in range(14)]
        for a, one in enumerate(dashes):
            for other in dashes[: max(0, a - 1)]:
                assert np.linalg.norm(one[:, None] - other, axis=-1).min() > 1.4


def test_dashes_are_as_many_and_as_long_as_published(shown: Scenes) -> None:
    assert shown.paths.shape == (N, 2, 15, 2)
    assert shown.distractors.shape == (N, 5, 5, 2)
    steps = np.linalg.norm(np.diff(shown.paths, axis=2), axis=-1)
    np.testing.assert_allclose(steps, 4)
    assert shown.paths.min() > 0 and shown.paths.max() < 32
    there = np.isfinite(shown.distractors).all((2, 3))
    assert 2 < there.sum(1).mean() <= 5
    assert (there | np.isnan(shown.distractors).all((2, 3))).all()


def test_paths_turn_as_published() -> None:
    """With weight cos^2 of the turn, where neither the border nor the other path is in reach."""
    paths = scenes(np.ones(3000, bool), 2, 0, np.random.default_rng(1)).paths
    begins = paths[:, 0, 1]
    alone = np.linalg.norm(paths[:, 1, :2] - begins[:, None], axis=-1).min(1) > 7
    steps = np.diff(paths[alone & (np.abs(begins - 16) < 10).all(1), 0], axis=1)
    assert len(steps) > 1000
    angles = np.arctan2(steps[..., 1], steps[..., 0])
    turns = np.angle(np.exp(1j * (angles[..., 1] - angles[..., 0])))
    ways = np.deg2rad(np.arange(-85, 86, 10))
    assert np.abs(turns).max() < np.deg2rad(86)
    expected = (np.cos(ways) ** 2 * ways**2).sum() / (np.cos(ways) ** 2).sum()
    assert (turns**2).mean() == pytest.approx(expected, rel=0.05)


def test_discs_are_at_a_beginning_and_an_end(shown: Scenes) -> None:
    begins = (shown.paths[:, :, 0] == shown.discs[:, None, 0]).all(-1)
    ends = (shown.paths[:, :, -1] == shown.discs[:, None, 1]).all(-1)
    assert (begins.sum(1) == 1).all() and (ends.sum(1) == 1).all()
    assert ((begins == ends).all(1) == SAME).all()
    assert 0.2 < begins[:, 0].mean() < 0.8


# --- images -----------------------------------------------------------------------------------


def test_a_disc_is_drawn_where_it_stands_and_dashes_are_brighter(shown: Scenes) -> None:
    images = drawn(shown, 32)
    assert images.shape == (N, 32, 32)
    assert images.dtype == np.uint8
    for image, discs in zip(images, shown.discs, strict=True):
        for x, y in discs:
            around = image[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
            assert np.median(around) >= 0.5 * 0.75 * 255
            assert image[int(y), int(x)] >= 0.74 * 255
    assert images.max() == 255
    alone = drawn(Scenes(shown.paths[:, :0], shown.distractors[:, :0], shown.discs), 32)
    assert set(np.unique(alone)) <= {round(255 * 0.75 * k / 16) for k in range(17)}
    areas = alone.sum((1, 2)) / (0.75 * 255)
    apart = np.linalg.norm(shown.discs[:, 0] - shown.discs[:, 1], axis=-1) > 4
    inner = ((shown.discs > 2) & (shown.discs < 30)).all((1, 2)) & apart
    np.testing.assert_allclose(areas[inner], 2 * np.pi * 1.5**2, rtol=0.15)


def test_dashes_are_drawn_with_gaps(shown: Scenes) -> None:
    """Ink where a dash has its middle, none in the middle of a gap, on a large image."""
    images = drawn(Scenes(shown.paths, shown.distractors[:, :0], shown.discs[:, :0]), 128)
    joints = shown.paths[:, :, 1:-1]  # no dash reaches a joint
    middles = (shown.paths[:, :, 1:] + shown.paths[:, :, :-1]) / 2
    for points, low, high in ((joints, 0, 5), (middles, 250, 255)):
        x, y = (points * 4).astype(int).reshape(N, -1, 2).transpose(2, 0, 1)
        values = images[np.arange(N)[:, None], y, x]
        assert low <= values.mean() <= high
    area = images.mean() / 255 * 32**2 / 28
    assert area == pytest.approx(2 * 1 + np.pi / 4, rel=0.1)  # of a dash, its ends are round


def test_a_size_is_a_resolution() -> None:
    small, large = Pathfinder(train=64), Pathfinder(train=64, size=64)
    one, other = (task.examples("train")[0].float() for task in (small, large))
    halved = other.view(64, 32, 2, 32, 2).mean((2, 4)).view(64, -1)
    close = torch.corrcoef(torch.stack([one.flatten(), halved.flatten()]))[0, 1]
    assert close > 0.9


# --- the task ---------------------------------------------------------------------------------


def test_half_of_the_images_are_of_each_class_and_none_is_in_two_splits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pathfinder, "HELD_OUT", 100)
    task, seen = Pathfinder(train=30), set()
    for purpose, size in (("train", 30), ("val", 100), ("test", 100)):
        images, classes = task.examples(purpose)  # type: ignore[arg-type]
        assert images.shape == (size, 1024)
        assert torch.bincount(classes).tolist() == [size // 2] * 2
        seen |= {bytes(image) for image in images.tolist()}
    assert len(seen) == 230
    assert task.ends == Ends(Tokens(256), Classes(2))
    assert not task.causal


def test_training_reads_train_alone_and_comes_round() -> None:
    task = Pathfinder(train=10)
    images, classes = task.examples("train")
    known = {bytes(row): int(c) for row, c in zip(images.tolist(), classes, strict=True)}
    found = set()
    for seed in range(12):
        inputs, told = task.sample(4, stream("train", seed))
        assert [known[bytes(row)] for row in inputs.tolist()] == told.tolist()
        found |= {bytes(row) for row in inputs.tolist()}
    assert found == known.keys()


def test_images_are_a_function_of_their_number_and_of_the_options() -> None:
    task = Pathfinder()
    for _ in range(2):  # drawn, and read again from where they are kept
        drawn = pathfinder._drawn(32, "hard", 5, "val", 1)
        assert all(map(torch.equal, task._chunk("val", 1), drawn))
        pathfinder._images.cache_clear()
    prints = {Pathfinder(difficulty=d).fingerprint() for d in ("easy", "intermediate", "hard")}
    assert len(prints) == 3
    shapes = [len(scenes(SAME[:2], n, 0, np.random.default_rng(0)).paths[0, 0]) for n in (6, 9)]
    assert shapes == [7, 10]


def test_the_floor_is_a_coin() -> None:
    assert Pathfinder().floor == pytest.approx({"accuracy": 0.5, "loss": np.log(2)})


@pytest.mark.parametrize(
    "options",
    [{"size": 31}, {"size": 257}, {"distractors": -1}, {"train": 1}, {"difficulty": "no"}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValidationError, match=rf"{name}\n +Input should"):
        Pathfinder(**options)
