"""What the report says of finalists: how far their seeds lie apart, how fast they are."""

import copy
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import archsearch
from archsearch.folder import StudyFolder
from archsearch.report import write_report
from archsearch.report.figures import CANDIDATE
from archsearch.report.findings import Findings
from archsearch.report.latency import TITLES, _ticks, latency
from archsearch.report.seeds import seeds
from archsearch.report.speeds import left_out, speeds

SPEC = archsearch.reference("retnet", dim=8, layers=1)


def run(seed: int, loss: float, split: str = "test") -> dict[str, Any]:
    return {"seed": seed, "split": split, "loss": loss, "tasks": {"recall": {"score": -loss}}}


def time(seconds: float, **more: float) -> dict[str, float]:
    return {"median": seconds, "lower": 0.9 * seconds, "upper": 1.2 * seconds, "rounds": 5, **more}


def at(context: int, seconds: float) -> dict[str, Any]:
    read, token = time(seconds), time(seconds / 100)
    return {"context": context, "prefill": read, "token": token, "state_bytes": 2 * context}


SPEED: dict[str, Any] = {
    "batch": 4,
    "length": 16,
    "precision": "float32",
    "train": time(0.02, tokens_per_second=3200.0),
    "decode": time(0.002, tokens_per_second=2000.0),
    "contexts": [at(256, 0.01), at(1024, 0.05)],
    "train_memory": 2**20,
    "memory_by": "trace",
    "machine": {"device": "cpu", "cpu": "2 cores", "threads": 1, "load": 0.5, "torch": "2.13"},
}


def trial(number: int, name: str, finals: list[float], **more: Any) -> dict[str, Any]:
    """What metrics.json says of a trained one."""
    runs = [run(0, 2.0 + number, "val"), *(run(1 + i, loss) for i, loss in enumerate(finals))]
    kind = "candidate" if name.startswith("trial") else "baseline"
    about = {"number": number, "kind": kind, "name": name, "state": "trained", "summary": "x"}
    return {**about, "loss": 2.0 + number, "runs": runs, **more}


def findings(*trials: dict[str, Any]) -> Findings:
    record = {"name": "demo", "tasks": {"recall": {}}}
    return Findings.of(record, {}, copy.deepcopy(trials))


def cells(section: str) -> dict[str, list[str]]:
    """The texts of every row by its first."""
    rows = re.findall(r"<tr.*?</tr>", section, re.S)
    texts = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return {re.sub(r"<[^>]*>", "", row[0]): row[1:] for row in texts}


losses = st.lists(st.floats(0.1, 9), min_size=1, max_size=5)


@given(one=losses, other=losses.filter(lambda found: len(found) > 1))
def test_the_spread_over_seeds(one: list[float], other: list[float]) -> None:
    """Mean, standard deviation and worst, of the loss the highest and of the score the lowest."""
    rows = cells(seeds(findings(trial(0, "trial 0", one), trial(1, "retnet", other))))
    for name, finals in (("trial 0 best", one), ("retnet baseline", other)):
        _, n, *told = rows[name]
        assert int(n) == len(finals)
        spread = f"{statistics.stdev(finals):.3f}" if len(finals) > 1 else "–"
        worst = 1 + finals.index(max(finals))
        mean = statistics.fmean(finals)
        assert told[:3] == [f"{mean:.3f}", spread, f"{max(finals):.3f} (seed {worst})"]
        mean, lowest = statistics.fmean(-x for x in finals), f"{-max(finals):.3f} (seed {worst})"
        assert told[3:] == [f"{mean:.3f}", spread, lowest]


def test_one_seed_each_has_no_spread() -> None:
    assert seeds(findings(trial(0, "trial 0", [1.0]), trial(1, "retnet", [2.0]))) == ""
    assert seeds(findings(trial(0, "trial 0", []))) == ""


def test_a_seed_without_a_score_is_no_score() -> None:
    data = trial(0, "trial 0", [1.0, 2.0])
    for entry in data["runs"]:
        entry["tasks"] = {}
    assert cells(seeds(findings(data)))["trial 0 best"][-3:] == ["–"] * 3


def test_the_speeds_of_all_finalists_in_units() -> None:
    section = speeds(
        findings(
            trial(0, "trial 0", [1.0], speed=SPEED),
            trial(1, "trial 1", [], speed=SPEED),
            trial(2, "trial 2", []),
            trial(3, "retnet", [1.0]),
        )
    )
    rows = cells(section)
    assert [name for name in rows if name.startswith(("trial", "retnet"))] == [
        "trial 0 best",
        "trial 1",
    ]
    told = ["3.20 k ± 15%", "1.00 MiB", "2.00 k ± 15%"]
    told += ["10.0 ms", "50.0 ms", "100 µs", "500 µs", "2.00 KiB"]
    assert rows["trial 0 best"][1:] == rows["trial 1"][1:] == told
    assert rows["name"][1:] == [
        "tokens/s", "peak memory", "tokens/s", "256", "1,024", "256", "1,024", "1,024",
    ]  # fmt: skip
    assert "threads 1" in section
    assert "load average 0.5 to 0.5" in section
    assert "Not measured" not in section


def test_what_was_not_measured_is_told_and_is_no_zero() -> None:
    long = {"context": 1024, "left_out": "takes at most 300 <tokens>"}
    whole = {**SPEED, "decode": {"left_out": "it sees the future"}, "contexts": [at(256, 1), long]}
    died = {"left_out": "Traceback\n  ...\nRuntimeError: shapes\n"}
    study = findings(trial(0, "trial 0", [1.0], speed=whole), trial(1, "retnet", [1.0], speed=died))
    assert [told for found in study.finalists for told in left_out(found)] == [
        "trial 0, decoding: it sees the future",
        "trial 0, 1024 tokens: takes at most 300 <tokens>",
        "retnet, all: RuntimeError: shapes",
    ]
    section = speeds(study)
    assert "Not measured: 3" in section
    assert "takes at most 300 &lt;tokens&gt;" in section
    rows = cells(section)
    assert rows["trial 0 best"][3:] == ["–", "1.00 s", "–", "10.0 ms", "–", "512 B"]
    assert {*rows["retnet baseline"][1:]} == {"–"}


@pytest.mark.parametrize("what", TITLES)
def test_latency_is_drawn_against_context(what: Any) -> None:
    """A line of medians and a band of quartiles for each that was timed, in its colour."""
    study = findings(
        trial(0, "trial 0", [1.0], speed=SPEED),
        trial(1, "trial 1", [1.0], speed=SPEED),
        trial(2, "retnet", [1.0], speed={"left_out": "died"}),
    )
    drawn = latency(study, what)
    assert drawn is not None
    shown = drawn.to_dict()
    assert shown["layout"]["xaxis"]["type"] == shown["layout"]["yaxis"]["type"] == "log"
    axis = shown["layout"]["yaxis"]
    ends = [10**end for end in axis["range"]]
    assert sum(0.999 * ends[0] <= tick <= 1.001 * ends[1] for tick in axis["tickvals"]) > 1
    bands, lines = shown["data"][::2], shown["data"][1::2]
    assert [line["name"] for line in lines] == ["best, trial 0", "trial 1"]
    assert lines[1]["line"]["color"] == CANDIDATE != lines[0]["line"]["color"]
    for band, line in zip(bands, lines, strict=True):
        assert line["x"] == [256, 1024]
        times = [entry[what] for entry in SPEED["contexts"]]
        assert line["y"] == [t["median"] for t in times]
        upper, lower = [t["upper"] for t in times], [t["lower"] for t in times]
        assert (band["x"], band["y"]) == ([256, 1024, 1024, 256], [*upper, *reversed(lower)])
    assert latency(findings(trial(0, "trial 0", [1.0], speed={"left_out": "x"})), what) is None


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=6))
@example([999.9999999999999])
def test_the_ticks_of_an_axis_are_around_its_values_and_few(times: list[float]) -> None:
    ticks = _ticks(times)
    assert ticks[0] <= min(times) <= max(times) <= ticks[-1]
    assert len(ticks) <= 3 * math.log10(max(times) / min(times)) + 4
    assert ticks == sorted(set(ticks))


def holes(tree: Any, hide: Callable[[Any], None]) -> None:
    """Calls `hide` with the whole tree once for every key in it, without that key."""

    def walk(node: Any) -> None:
        for key in [*node] if isinstance(node, dict) else range(len(node)):
            value = node[key]
            if isinstance(value, dict | list):
                walk(value)
            if isinstance(node, dict) and key != "context":
                del node[key]
                hide(tree)
                node[key] = None
                hide(tree)
                node[key] = value

    walk(tree)


def test_nothing_that_is_missing_stops_the_section() -> None:
    seen: list[str] = []
    holes(
        copy.deepcopy(SPEED),
        lambda speed: seen.append(speeds(findings(trial(0, "trial 0", [1.0], speed=speed)))),
    )
    assert len(seen) > 50
    assert all("Speed and memory" in section for section in seen)


def test_the_page_has_both_sections(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    folder.write_record({"name": "demo", "tasks": {"recall": {}}})
    for data in (
        trial(0, "trial 0", [1.0, 1.5], speed=SPEED),
        trial(1, "retnet", [2.0, 2.5], speed=SPEED),
    ):
        folder.write_trial(data["number"], SPEC, data)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for title in ("Robustness to seeds", "Speed and memory"):
        assert f"<h2>{title}</h2>" in page
    assert 'id="prefill"' in page
    assert 'id="token"' in page
    bare = trial(0, "trial 0", [1.0])
    folder.write_trial(0, SPEC, bare)
    folder.write_trial(1, SPEC, trial(1, "retnet", [2.0]))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for title in ("Robustness to seeds", "Speed and memory"):
        assert f"<h2>{title}</h2>" not in page
