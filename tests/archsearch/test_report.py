"""The report: what it says of studies in every state, and that it is one file without network."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from scipy import stats

import archsearch
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.report import write_report
from archsearch.report.diagram import architecture, layout
from archsearch.report.findings import Findings, pareto_front
from archsearch.report.verdict import difference, verdict
from archsearch.spec import ModelSpec
from archsearch.units import BYTES, COSTS, MORE

PLOTLY = get_plotlyjs()
SPEC = archsearch.reference("retnet", dim=8, layers=1)
LOSS = {"lang": 0.5, "recall": -0.5}  # of a task, less the mean over tasks


def run(seed, split, loss, tasks=("recall",)):
    """A run in metrics.json."""
    shift = 0.0 if len(tasks) == 1 else 1.0
    return {
        "seed": seed,
        "split": split,
        "loss": loss,
        "seconds": 1.0,
        "tasks": {
            task: {
                "loss": loss + shift * LOSS[task],
                "score": 0.1,
                "metrics": {"accuracy": 0.25, "loss": loss, "unknown": 7.25},
                "curve": [[1, loss + 2], [10, loss + 0.5], [20, loss]],
                "rungs": [[10, loss + 0.6], [20, loss]],
                "seconds": 1.0,
            }
            for task in tasks
        },
    }


class Study:
    """A study's folder, filled by hand."""

    def __init__(self, path, tasks=("recall",), **record):
        self.folder, self.tasks, self.number = StudyFolder(path), tasks, 0
        floors = {"a guess": {"accuracy": 0.125, "loss": 1.386}, "a count": {"bits": 3.5}}
        self.record = {
            "name": "demo",
            "seeds": {"search": 0, "final": [1, 2]},
            "started": "2026-11-21T00:03:47+00:00",
            "finished": "2026-11-21T00:09:00+00:00",
            "counts": {"proposed": 0},
            "tasks": {task: {"fingerprint": "9914c9", "floors": floors} for task in tasks},
            "untrained": [],
        } | record
        self.folder.write_record(self.record)
        self.folder.write_space(
            {
                "name": "demo",
                "tasks": [{"type": task, "length": 16} for task in tasks],
                "budgets": {"state": {"max": 2**20, "context": 4096}, "parameters": {"max": None}},
                "search": {"sampler": "tpe", "trials": 9},
            }
        )

    def add(self, name, loss, finals=(), *, spec=SPEC, cost=None, **more):
        """A trial with a search loss and final losses; a baseline unless it is named `trial ...`."""
        failed = loss is None
        runs = [] if failed else [run(0, "val", loss, self.tasks)]
        runs += [run(1 + i, "test", final, self.tasks) for i, final in enumerate(finals)]
        default = {
            "parameters": 3232,
            "flops_per_token": 13024,
            "state": 520,
            "train_memory": 2**24,
        }
        metrics = {
            "number": self.number,
            "kind": "candidate" if name.startswith("trial") else "baseline",
            "name": name,
            "state": "failed" if failed else "trained",
            "hash": "c0ffee",
            "summary": spec.summary(),
            "cost": default if cost is None else cost,
            "loss": loss,
            "cause": None,
            "message": None,
            "runs": runs,
            "failures": [],
        } | more
        self.folder.write_trial(self.number, spec, metrics)
        self.number += 1
        return self

    def verdict(self):
        return verdict(Findings.read(self.folder))

    def page(self):
        """The page without the library inlined in it."""
        return write_report(self.folder.path).read_text(encoding="utf-8").replace(PLOTLY, "")


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "demo")


class Rows(HTMLParser):
    """The texts of the cells of every table row, and what is loaded or linked."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.links, self.scripts = [], [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def table_of(page, title):
    """The rows of a section's table by their first cell, titles under "name", no groups of them."""
    section = page.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]
    return {row[0]: row[1:] for row in Rows(section).rows if row and row[0]}


def test_the_page_is_one_file_without_network(study):
    study.add("retnet", 2.0, [2.0, 2.1]).add("trial 1", 1.5, [1.5, 1.6])
    whole = write_report(study.folder.path).read_text(encoding="utf-8")
    assert whole.count(PLOTLY) == 1
    rest = whole.replace(PLOTLY, "")
    assert Rows(rest).links == []
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", rest)
    assert "default-src 'none'" in rest


def test_the_same_study_gives_the_same_page(study):
    study.add("retnet", 2.0).add("trial 1", 1.5)
    assert study.page() == study.page()


def test_every_entry_is_in_the_table_by_loss(tmp_path):
    study = Study(tmp_path, tasks=("lang", "recall"))
    study.add("retnet", 2.0, [2.0, 2.2]).add("trial 1", 1.5, [1.5]).add("trial 2", None)
    study.add("trial 3", 1.75)
    rows = table_of(study.page(), "Everything trained")
    body = [*rows][1:]
    told = ["trial 1 best", "trial 3", "retnet baseline", "trial 2", "a guess", "a count"]
    assert body == told
    assert rows["trial 1 best"][1:5] == ["1.500", "1.500 (1)", "0.100", "2"]
    assert rows["trial 1 best"][5:11] == ["0.100", "2.000", "0.250", "0.100", "1.000", "0.250"]
    assert rows["retnet baseline"][1:3] == ["2.000", "2.100 ± 0.141 (2)"]
    assert rows["retnet baseline"][-4:] == ["13.0 k", "3.23 k", "520 B", "16.0 MiB"]
    assert rows["trial 3"][2] == "–"
    assert set(rows["trial 2"][1:7]) == {"–"}
    floor = ["", "1.386", "0.125"]
    assert rows["a guess"] == [*[""] * 4, *floor, *floor, "", "", "", ""]
    assert {*rows["a count"]} == {""}


def test_a_rank_is_the_mean_place_and_ties_share_theirs(study):
    for name, scores in {
        "trial 1": [0.9, 0.1],
        "trial 2": [0.5, 0.5],
        "trial 3": [0.9, 0.9],
    }.items():
        study.add(name, 1.0)
        trial = study.folder.read_trial(study.number - 1)
        runs = trial["runs"][0]["tasks"]
        runs["recall"]["score"] = scores[0]
        runs["other"] = {**runs["recall"], "score": scores[1]}
        study.folder.write_trial(study.number - 1, SPEC, trial)
    study.folder.write_record(study.record | {"tasks": {"recall": {}, "other": {}}})
    findings = Findings.read(study.folder)
    ranks = {trial.name: findings.rank(trial) for trial in findings.trained}
    assert ranks == {"trial 1": 2.25, "trial 2": 2.5, "trial 3": 1.25}
    assert {t.name: t.score for t in findings.trained}["trial 1"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (["nats", "nats"], "cross-entropy in nats per answer"),
        (["squared error"], "mean over tasks of the squared error,"),
        (["nats", "squared error"], "in different units"),
    ],
)
def test_the_loss_has_its_unit(tmp_path, units, said):
    tasks = {task: {"unit": unit} for task, unit in zip(LOSS, units, strict=False)}
    study = Study(tmp_path, tasks=[*tasks]).add("trial 1", 1.0, [1.0])
    study.folder.write_record(study.record | {"tasks": tasks})
    page = study.page()
    assert said in page
    assert ("nats" in page) == ("nats" in units)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([1.4, 1.5], [1.6, 1.7], "It beats retnet, 1.650 (1.600 to 1.700) (by 0.200, 0.200 to"),
        ([1.4, 1.5, 1.3], [1.6, 1.7, 1.6], "It beats retnet, 1.633 (1.600 to 1.700) (by 0.233, 0."),
        ([1.4, 1.6], [1.6, 1.7], "It is not told apart at these seeds from retnet"),
        ([1.5], [1.4, 1.6], "It is not told apart at these seeds from retnet"),
        ([1.8, 1.9], [1.6, 1.7], "It is beaten by retnet"),
        ([1.4], [1.6], "It is below retnet, 1.600 (one seed). One seed shows no spread"),
        ([1.8], [1.6, 1.7], "It is above retnet, 1.650 (1.600 to 1.700). One seed shows no spread"),
    ],
)
def test_the_verdict_is_no_louder_than_the_final_runs(study, ours, theirs, says):
    text = study.add("retnet", 2.0, theirs).add("trial 1", 1.5, ours).verdict()
    assert says in text
    assert ("beats" in text) == ("beats" in says)
    assert ("It is the winner" in text) == ("beats" in says)
    assert ("a tied set of 2 (retnet, trial 1)" in text) == ("not told apart" in says)
    assert ("not the best here: retnet is" in text) == ("beaten" in says)
    assert ("no spread" in text) == (min(len(ours), len(theirs)) == 1)


def test_nobody_wins_over_a_candidate_without_final_runs(study):
    """`final.top: 1`: to beat the baselines is not to beat who came next in the search."""
    study.add("retnet", 2.0, [1.6, 1.7]).add("trial 1", 1.5, [1.4, 1.5])
    assert study.verdict().endswith("It is the winner.")
    text = study.add("trial 2", 1.6).verdict()
    assert "It beats retnet" in text
    assert "No winner: trial 2, the next in the search (1.600 after 1.500), has no final" in text
    text = study.add("trial 3", 1.55, [1.8, 1.9]).verdict()
    assert text.endswith("It is the winner.")  # the next is among them; who is behind it need not


def test_differences_are_paired_by_seed(study):
    """A seed that is hard for both says nothing of either: the interval is of what is left."""
    noise = [0.0, 0.5, -0.4, 0.2]
    ours, theirs = [1.0 + x for x in noise], [1.1 + x + 0.01 * i for i, x in enumerate(noise)]
    study.add("retnet", 2.0, theirs).add("trial 1", 1.5, ours)
    retnet, best = sorted(Findings.read(study.folder).trained, key=lambda t: t.name)
    found = difference(best, retnet)
    assert found is not None
    test = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert found.mean == pytest.approx(-0.115)
    assert found.n == 4
    assert max(ours) > min(theirs)
    assert "It is the winner" in study.verdict()


def test_a_tied_set_has_candidates_and_baselines(study):
    study.add("retnet", 2.0, [1.6, 1.7, 1.5]).add("trial 1", 1.5, [1.5, 1.7, 1.6])
    study.add("trial 2", 1.6, [1.55, 1.6, 1.7]).add("trial 3", 1.7, [1.9, 2.1, 2.0])
    text = study.verdict()
    assert "No winner: a tied set of 3 (retnet, trial 1, trial 2)" in text
    assert "It beats trial 3" in text


def test_the_page_opens_with_the_verdict(study):
    study.add("retnet", 2.0, [1.6, 1.7]).add("trial 1", 1.5, [1.4, 1.5])
    assert f'<p class="verdict">{study.verdict()}</p>' in study.page()


def test_the_verdict_without_final_runs_says_so(study):
    study.add("retnet", 2.0).add("trial 1", 1.5)
    assert "trial 1 leads the candidates with a validation loss of 1.500" in study.verdict()
    assert "validation losses, by which it was chosen" in study.verdict()
    assert "beats" not in study.verdict()


def test_the_verdict_names_what_is_missing(study):
    failure = {"seed": 2, "split": "test", "state": "failed", "cause": "diverged", "message": ""}
    study.add("retnet", 2.0).add("trial 1", 1.5, [1.5], failures=[failure])
    study.record["untrained"] = [{"kind": "baseline", "name": "mamba", "state": "over_budget"}]
    study.folder.write_record(study.record)
    text = study.verdict()
    assert "Without a final run: retnet." in text
    assert "Not trained: mamba (over budget)." in text
    assert "Final runs that failed: trial 1 1." in text


def test_the_best_is_chosen_on_validation_not_on_the_test_split(study):
    study.add("trial 0", 1.5, [1.9, 1.9]).add("trial 1", 1.6, [1.2, 1.2])
    assert "trial 0 reaches a loss of 1.900" in study.verdict()


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20)


@given(points)
def test_the_pareto_front_is_what_nothing_dominates(points):
    def dominated(p):
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    front = pareto_front(points)
    assert sorted(front) == [i for i, p in enumerate(points) if not dominated(p)]
    assert [points[i] for i in front] == sorted(points[i] for i in front)


def test_what_a_trial_says_is_escaped(study):
    evil = '<script>alert("x")</script>'
    study.add("trial 0", 1.5, [1.5], summary=evil).add(f"trial {evil}", 1.6)
    study.add("trial 2", None, cause="error", message=f"Traceback\n  ...\n{evil} & more")
    study.record["command"] = study.record["name"] = evil
    study.record["untrained"] = [{"name": evil, "state": "invalid", "message": evil}]
    study.record["counts"] = {"failed": 1, "failed_by": {evil: 1}}
    study.folder.write_record(study.record)
    text = study.page()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; more" in text
    assert "Traceback" not in text
    harmless = Study(study.folder.path.parent / "harmless").add("trial 0", 1.5, [1.5])
    harmless.add("trial 1", 1.6)
    assert Rows(text).scripts == Rows(harmless.page()).scripts


def test_failures_are_told_with_cause_and_last_line(study):
    study.add("trial 0", None, cause="out_of_memory", message="Traceback\n\nno 3 GiB left\n")
    study.record["counts"] = {"proposed": 1, "failed": 1, "failed_by": {"out_of_memory": 1}}
    study.folder.write_record(study.record)
    assert "out of memory: no 3 GiB left" in study.page()
    assert "out of memory 1" in study.page()


def test_every_proposal_is_counted(study):
    counts = {"proposed": 40, "trained": 11, "failed": 2, "over_budget": 13, "duplicate": 7}
    counts |= {"pruned": 5, "pruned_by": {"rung 1": 5}, "deaths": 2}
    counts |= {"spent": {"seconds": 90.0, "tokens": 2_500_000, "flops": 7 * 10**15}}
    counts |= {"invalid": 4, "unfinished": 3, "over_budget_by": {"parameters": 12, "state": 1}}
    twin = {"number": 6, "name": "trial 6", "state": "duplicate", "duplicate_of": 3}
    study.record |= {"counts": counts, "untrained": [twin]}
    study.folder.write_record(study.record)
    text = study.page()
    tiles = dict(re.findall(r"<b>(\d+)</b> ([a-z ]+)", text))
    assert "11 trained of 40 proposed." in text
    assert "the end trained for 1.5 minutes of one worker" in text
    assert "over 2.50 M positions, in 7.00 P FLOPs" in text
    assert "Workers died 2 times" in text
    assert "rung 1 5" in text
    assert tiles == {
        "40": "proposed",
        "11": "trained",
        "5": "pruned",
        "2": "failed",
        "13": "over budget",
        "7": "duplicate",
        "4": "invalid",
        "3": "unfinished",
    }
    assert "parameters 12, state 1" in text
    assert "the architecture of trial 3" in text


def test_a_study_in_progress(study):
    study.record["finished"] = None
    study.folder.write_record(study.record)
    assert "0 of 9 candidates trained" in study.page()
    assert "No candidate has been trained yet" in study.page()
    study.add("retnet", 2.0)
    assert "No candidate has been trained yet" in study.page()
    study.add("trial 1", 1.5)
    assert "1 of 9 candidates trained" in study.page()


def test_nothing_that_is_missing_stops_the_report(study):
    study.add("retnet", math.nan, cost={"state": None}).add("trial 1", 1.5, [math.inf], cost={})
    study.add("trial 2", 1.6, cost={"parameters": 0})
    bare = {"number": 3, "kind": "candidate", "name": "trial 3", "state": "trained", "loss": 1.7}
    study.folder.write_trial(3, SPEC, bare)
    for key in ("counts", "tasks", "untrained", "seeds", "finished"):
        study.page()
        del study.record[key]
        study.folder.write_record(study.record)
    study.folder.space.unlink()
    assert "trial 2" in study.page()


def test_a_spec_that_is_not_known_here_is_shown_undrawn(study):
    study.add("trial 0", 1.5)
    path = study.folder.trial(0) / "spec.yaml"
    path.write_text(path.read_text().replace("retention", "gone"))
    assert "It cannot be drawn here" in study.page()
    assert "type: gone" in study.page()


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no study here \(record.json is missing\)"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def figure_of(page, name):
    """(data, layout) of a figure in a page."""
    decode = json.JSONDecoder().raw_decode
    start = page.index("[", page.index("newPlot(", page.index(f'id="{name}"')))
    traces, end = decode(page, start)
    return traces, decode(page, page.index("{", end))[0]


def test_loss_against_cost_has_a_view_for_every_cost(study):
    study.add("retnet", 2.0).add("trial 1", 1.5, cost={"state": 524816, "parameters": 4048})
    traces, shown = figure_of(study.page(), "pareto")
    buttons = shown["updatemenus"][0]["buttons"]
    known = [*COSTS, *(cost for cost in MORE if cost.name == "train_memory")]  # which it has
    assert [b["label"] for b in buttons] == [cost.title for cost in known]
    for button in buttons:
        lines, axis = button["args"]
        assert len(lines["x"]) == len(lines["y"]) == len(traces)
        assert [len(x) for x in lines["x"]] == [len(y) for y in lines["y"]]
    lines, axis = buttons[2]["args"]
    assert axis["xaxis.type"] == "log"
    assert axis["xaxis.title.text"] == "state, KiB (context 4096)"
    assert dict(zip((t["name"] for t in traces), lines["x"], strict=True)) == {
        "other candidates": [],
        "retnet": [520 / 1024],
        "best, trial 1": [524816 / 1024],
        "Pareto front": [520 / 1024, 524816 / 1024],
        "budget": [1024, 1024],
    }


def test_curves_show_training_rungs_and_the_floor(study):
    study.add("retnet", 2.0).add("trial 1", 1.5).add("trial 2", 1.6)
    traces, shown = figure_of(study.page(), "curves-0")
    drawn = {(t["name"], t["mode"]): t["y"] for t in traces if "name" in t}
    assert drawn["best, trial 1", "lines"] == [3.5, 2.0, 1.5]
    assert drawn["best, trial 1", "markers"] == [2.1, 1.5]
    assert ("other candidates", "lines") in drawn
    assert [shape["y0"] for shape in shown["shapes"]] == [1.386]


MIXERS = ["retention", "mamba", "attention"]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("branches", [2, 3])
def test_the_diagram_overlaps_nowhere_and_runs_down(layers, branches):
    topology = {"type": "parallel", "branches": MIXERS[:branches], "merge": "route"}
    spec = ModelSpec.model_validate({"dim": 8, "layers": layers, "topology": topology})
    graph = spec.graph()
    boxes = layout(graph)
    assert set(boxes) == set(graph)
    ends = [
        (b.x - b.half_width, b.x + b.half_width, b.y - b.half_height, b.y + b.half_height)
        for b in boxes.values()
    ]
    for i, a in enumerate(ends):
        for b in ends[:i]:
            assert a[1] < b[0] or b[1] < a[0] or a[3] < b[2] or b[3] < a[2]
    for source, target in graph.edges:
        a, b = boxes[source], boxes[target]
        assert (b.x > a.x) or (b.x == 0 and b.y > a.y)


def test_every_fusion_is_drawn(fusion):
    """With all that it is made of, and what a layer at a lower rate is pooled by."""
    data = architecture(fusion).to_dict()["data"]
    text = " ".join(label for trace in data for label in trace.get("text", []))
    for data in fusion.graph().nodes.values():
        if data["op"] == "mixer":
            assert data["part"].type in text
        if data["op"] == "pool":
            assert f"pool {data['sizes'][0]}" in text


def test_the_diagram_draws_equal_layers_once():
    stages = {"low": {"mixer": "retention"}, "high": {"mixer": "attention"}}
    topology = {"type": "hierarchical", "stages": stages, "depth": {"low": 3, "high": 1}}
    figure = architecture(ModelSpec.model_validate({"dim": 8, "layers": 4, "topology": topology}))
    drawn = figure.to_dict()
    titles = [annotation["text"] for annotation in drawn["layout"]["annotations"]]
    assert titles == ["layers 0 to 2,<br>equal", "layer 3"]
    text = [label.partition("<br>")[0] for t in drawn["data"] for label in t.get("text", [])]
    assert text.count("<b>retention</b>") == text.count("<b>attention</b>") == 1


@pytest.mark.parametrize(
    ("value", "count", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (1024, "1.02 k", "1.00 KiB"),
        (999_400, "999 k", "976 KiB"),
        (2**20 * 17.2, "18.0 M", "17.2 MiB"),
        (None, "–", "–"),
    ],
)
def test_costs_in_human_units(value, count, size):
    parameters, state = COSTS[1], COSTS[2]
    assert state.units is BYTES
    assert (parameters.tell(value), state.tell(value)) == (count, size)


def test_a_measured_breach_is_a_sentence(study):
    over = {"budget": "state", "cost": 2**21, "max": 2**20}
    study.add("trial 1", 1.5, breaches=[over]).add("trial 2", 1.6)
    page = study.page()
    told = "trial 1 breaks a budget as measured after training: state 2.00 MiB, limit 1.00 MiB."
    assert page.count("breaks a budget") == 1
    assert told in page


def test_costs_that_a_space_asks_for_are_shown_in_their_units(study):
    assert "decode latency" not in study.add("retnet", 2.0).page()
    page = study.add("trial 1", 1.5, cost={"decode_latency": 0.0021}).page()
    assert "decode latency" in page
    assert "2.10 ms" in page
