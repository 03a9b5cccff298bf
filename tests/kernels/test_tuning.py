"""Which tile a kernel is launched with: out of the table, and out of a file of measured rows."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from archsearch.kernels import tiles, tuning
from archsearch.kernels.launch import Device, Tile
from archsearch.kernels.tuning import Row, Tuner

ROW = Row("sm_90", "scan o scalar", 2, 100)
CANDIDATES = [(64, 4, 1), (32, 4, 1), (16, 4, 1)]


@pytest.fixture
def table(monkeypatch):
    """A table of two architectures."""
    rows = {("scan o scalar", 2): {64: (64, 4, 2), 128: (32, 4, 2)}}
    monkeypatch.setattr(tiles, "TABLE", {"sm_80": rows, "sm_90": rows, "gfx942": rows})
    monkeypatch.setitem(tuning.CANDIDATES, ("scan o scalar", 2), CANDIDATES)


def tile(size=100, architecture="sm_90"):
    return tiles.tile_of(Device(architecture, 1), "scan o scalar", size, torch.bfloat16)


@pytest.fixture
def tuner(table, monkeypatch, tmp_path):
    """tuner(times): by the block of the tile that runs; an error is raised. The file is new."""

    def tuner(times, measured=None):
        def clock(call):
            tile = call()
            if measured is not None:
                measured.append(tile)
            if isinstance(times[tile.block], BaseException):
                raise times[tile.block]
            return times[tile.block]

        new = Tuner(tmp_path / "tiles.json", clock)
        monkeypatch.setattr(tuning, "TUNER", new)
        return new

    return tuner


@pytest.mark.parametrize(("size", "block"), [(1, 64), (64, 64), (65, 32), (128, 32), (500, 32)])
def test_a_call_takes_the_row_of_the_next_size_up(table, size, block):
    assert tile(size).block == block


@pytest.mark.parametrize(
    ("chip", "row"),
    [
        ("sm_80", "sm_80"),
        ("sm_89", "sm_80"),
        ("sm_90", "sm_90"),
        ("sm_120", "sm_90"),
        ("gfx942", "gfx942"),
        ("gfx950", "gfx942"),
    ],
)
def test_an_architecture_takes_the_newest_that_is_not_newer(table, chip, row):
    assert tiles.nearest_architecture(chip) == row


@pytest.mark.parametrize("chip", ["sm_75", "gfx90a", "npu1"])
def test_an_architecture_older_than_all_is_refused(table, chip):
    with pytest.raises(ValueError, match=f"no Triton tiles for {chip}: there are sm_80, sm_90"):
        tiles.nearest_architecture(chip)


def test_the_table_is_of_candidates():
    for architecture, rows in tiles.TABLE.items():
        for key, sizes in rows.items():
            assert set(sizes.values()) <= set(tuning.CANDIDATES[key]), f"{architecture} {key}"


def test_without_the_switch_nothing_is_measured(table, monkeypatch):
    monkeypatch.setattr(tuning, "TUNER", None)
    calls = []
    operator = tuning.tuned(lambda x: calls.append(x) or tile())
    assert operator(3) == Tile(32, 4, 2)
    assert calls == [3]


def test_the_fastest_is_chosen_and_kept(tuner, capsys):
    measured = []
    new = tuner({64: 3.0, 32: 2.0, 16: 1.0}, measured)
    operator = tuning.tuned(tile)
    assert operator() == Tile(16, 4, 1)
    assert operator() == Tile(16, 4, 1)
    assert measured == [(32, 4, 2), *CANDIDATES]  # the table's first; and once
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "ARCHSEARCH_TUNE: scan o scalar, 16 bits, 100 on sm_90: "
        "(16, 4, 1) takes 1 ms, (32, 4, 2) 2",
    ]
    assert json.loads(new.path.read_text()) == [
        {**ROW._asdict(), "block": 16, "warps": 4, "stages": 1}
    ]


def test_a_row_is_tried_with_the_others_fixed(tuner):
    new = tuner({})
    new.clock = lambda call: float(sum(found.block for found in call()))
    assert tuning.tuned(lambda: (tile(60), tile(100)))() == (Tile(16, 4, 1),) * 2
    assert new.rows.keys() == {ROW, ROW._replace(size=60)}


def test_a_candidate_that_fails_is_skipped(tuner, capsys):
    tuner({64: 3.0, 32: 2.0, 16: RuntimeError("out of resource: shared memory\nmore")})
    assert tuning.tuned(tile)() == Tile(32, 4, 2)  # the table's, which is first of the fastest
    failed, chosen = capsys.readouterr().err.splitlines()
    assert failed.endswith("(16, 4, 1) fails: RuntimeError: out of resource: shared memory")
    assert chosen.endswith("(32, 4, 2) takes 2 ms, (32, 4, 2) 2")


def test_an_operator_that_fails_by_itself_says_so(tuner):
    new = tuner({32: ValueError("not for tuning")})
    with pytest.raises(ValueError, match="not for tuning"):
        tuning.tuned(tile)()
    assert not new.rows and not new.path.exists()


def test_an_interrupted_measurement_leaves_nothing(tuner):
    new = tuner({64: KeyboardInterrupt(), 32: 2.0})
    with pytest.raises(KeyboardInterrupt):
        tuning.tuned(tile)()
    assert not new.rows and not new.path.exists()


def test_a_new_process_reads_the_file_and_measures_nothing(tuner):
    new = tuner({64: 3.0, 32: 2.0, 16: 1.0})
    tuning.tuned(tile)()
    program = """
import torch
from archsearch.kernels import tiles, tuning
from archsearch.kernels.launch import Device
tuning.TUNER.clock = None
operator = tuning.tuned(
    lambda: tiles.tile_of(Device("sm_90", 1), "scan o scalar", 100, torch.bfloat16)
)
print(tuple(operator()))
"""
    environment = {**os.environ, "ARCHSEARCH_TUNE": str(new.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(16, 4, 1)", done.stderr


def test_what_another_process_wrote_stays(tuner):
    new = tuner({64: 3.0, 32: 2.0, 16: 1.0})
    theirs = ROW._replace(kernel="scan dq scalar")
    tuning.write(new.path, {theirs: Tile(64, 8, 2)})
    tuning.tuned(tile)()
    assert tuning.read(new.path) == {ROW: Tile(16, 4, 1), theirs: Tile(64, 8, 2)}
    assert os.listdir(new.path.parent) == ["tiles.json"]


GOOD = {**ROW._asdict(), "block": 16, "warps": 4, "stages": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"tiles.json is not JSON: Expecting"),
        ("{}", r"tiles.json must hold a list; got dict"),
        ('["sm_90"]', r"row 1 must have architecture, .*, stages; got \"sm_90\""),
        (
            json.dumps([GOOD, {"block": 16}]),
            r"row 2 must have architecture, .*; got {\"block\": 16}",
        ),
        (json.dumps([GOOD | {"warps": 0}]), r"row 1: warps must be a positive integer; got 0"),
        (json.dumps([GOOD | {"size": True}]), r"row 1: size must be a positive integer; got true"),
        (json.dumps([GOOD | {"kernel": 3}]), r"row 1: kernel must be a string; got 3"),
        (json.dumps([GOOD | {"block": 48}]), r"row 1: block must be a power of 2; got 48"),
    ],
)
def test_a_malformed_file_says_where(tmp_path, content, message):
    path = tmp_path / "tiles.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        tuning.read(path)
