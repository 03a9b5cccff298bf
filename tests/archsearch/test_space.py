"""Spaces: decisions by stable paths, sharing, what is illegal and where, in a whole document."""

import random
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch import build, census, load_space
from archsearch.covering import covering_draws, decisions
from archsearch.domains import Choice, Float, Int, parse
from archsearch.errors import SpecError
from archsearch.resolving import Draw
from archsearch.space import Space

ROOT = Path(__file__).parents[2]
HEAD = "archsearch: 1\nname: t\ntasks: [{type: in_context_recall}]\n"


def space(tmp_path: Path, text: str) -> Space:
    (tmp_path / "s.yaml").write_text(HEAD + text)
    return load_space(tmp_path / "s.yaml")


MODEL = """
shared:
  gate: {choice: [none, silu]}
define:
  conv: {choice: [0, 3]}
  decay: {choose: {fixed: {}, learned: {half_life: {float: [2, 64], log: true}}}}
  retention: {type: retention, heads: {int: [2, 4], step: 2}, decay: $decay, gate: $gate, conv: $conv}
  mixer: {choice: [$retention, mamba]}
model:
  dim: 16
  layers: 3
  topology:
    choose:
      parallel: {branches: [$mixer, $retention], merge: {choose: {sum: {}, route: {temperature: 1.0}}}}
      hierarchical:
        stages: {low: {mixer: $mixer}, high: {mixer: $mixer}}
        depth: {composition: 3, parts: [low, high]}
      interleave: {major: $mixer, minor: $mixer, phase: {fraction: true}}
"""


def test_paths_are_where_things_stand(tmp_path: Path) -> None:
    names = decisions(space(tmp_path, MODEL)).keys()
    assert {
        "topology",
        "shared/gate",
        "topology/parallel/branches/0",
        "topology/parallel/branches/0/retention/heads",
        "topology/parallel/branches/1/decay/learned/half_life",
        "topology/parallel/merge",
        "topology/hierarchical/depth",
        "topology/hierarchical/stages/low/mixer/retention/conv",
        "topology/interleave/phase",
    } <= names


@pytest.mark.parametrize("source", ["test", "fusion.yaml"])
def test_every_draw_builds_and_is_what_was_decided(tmp_path: Path, source: str) -> None:
    loaded = space(tmp_path, MODEL) if source == "test" else load_space(ROOT / "spaces" / source)
    seen = set()
    for seed in range(20):
        spec = loaded.sample(seed)
        assert spec == loaded.sample(seed)
        build(spec, vocab=16)
        seen.add(spec.hash())
    assert len(seen) > 5


def test_covering_draws_take_every_alternative(tmp_path: Path) -> None:
    loaded = space(tmp_path, MODEL)
    draws = [draw for draw in covering_draws(loaded) if isinstance(draw, Draw)]
    taken = {(n, repr(v)) for draw in draws for n, v in draw.decisions.items()}
    rng = random.Random(0)
    for _ in range(200):  # nothing that a random draw decides is unknown to them
        draw = loaded.resolve(lambda _, domain: domain.draw(rng))
        for name, domain in draw.domains.items():
            assert all((name, repr(v)) in taken for v in domain.alternatives())
            if isinstance(domain, Choice):
                assert (name, repr(draw.decisions[name])) in taken


def test_shared_is_one_decision_and_define_a_fresh_one(tmp_path: Path) -> None:
    loaded = space(tmp_path, MODEL)
    gates, heads = set(), set()
    for seed in range(60):
        spec = loaded.sample(seed)
        if spec.topology.type == "parallel":
            mixers = [m for m in spec.topology.branches if m.type == "retention"]
            if len(mixers) == 2:
                one, other = (mixer.options() for mixer in mixers)
                gates.add((one["gate"], other["gate"]))
                heads.add((one["heads"], other["heads"]))
    assert gates == {("none", "none"), ("silu", "silu")}
    assert (2, 4) in heads or (4, 2) in heads


def test_optuna_draws_what_the_chooser_would(tmp_path: Path) -> None:
    loaded = space(tmp_path, MODEL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(20):
        trial = study.ask()
        spec = loaded.decide(lambda name, domain, trial=trial: domain.suggest(trial, name))
        again = loaded.decide(lambda name, _, params=trial.params: params[name])
        assert spec == again
        study.tell(trial, 0.0)


@given(st.integers(-5, 5), st.integers(0, 9), st.integers(1, 4), st.integers(0, 10**6))
@settings(deadline=None)
def test_draws_lie_in_their_domain(lo: int, width: int, step: int, seed: int) -> None:
    rng = random.Random(seed)
    domain = parse({"int": [lo, lo + width], "step": step})
    assert domain.draw(rng) in range(lo, lo + width + 1, step)
    assert set(domain.alternatives()) <= set(range(lo, lo + width + 1, step))
    value = parse({"float": [0.5, 8.0], "log": True}).draw(rng)
    assert isinstance(value, float) and 0.5 <= value <= 8.0
    stepped = parse({"float": [1, 4], "step": 0.5}).draw(rng)
    assert isinstance(stepped, float) and (stepped * 2).is_integer() and 1 <= stepped <= 4
    logged = parse({"int": [1, 100], "log": True}).draw(rng)
    assert isinstance(logged, int) and 1 <= logged <= 100
    fraction = parse({"fraction": True}).draw(rng)
    assert isinstance(fraction, float) and 0 <= fraction < 1


def test_a_model_that_sees_the_future_is_refused_where_tasks_are_causal(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="told the answers of in_context_recall; drop `causal`"):
        space(tmp_path, MODEL + "  causal: false\n")


def test_domains_are_told_apart_from_literals() -> None:
    assert parse({"int": [1, 3]}) == Int(1, 3, 1, default=1)
    assert parse({"float": [1, 3]}) == Float(1.0, 3.0, default=1.0)
    lists = parse({"choice": [[1, 2], [3]]})
    assert lists.alternatives() == ["[1, 2]", "[3]"] and lists.nodes == ([1, 2], [3])  # type: ignore
    mixed = parse({"choice": [True, 1, None, "no"]})
    assert isinstance(mixed, Choice) and [mixed.index(x) for x in (True, 1, None, "no")] == [
        0,
        1,
        2,
        3,
    ]
    sums = parse({"composition": 4, "parts": ["a", "b"]})
    assert sums.nodes == ({"a": 1, "b": 3}, {"a": 2, "b": 2}, {"a": 3, "b": 1})  # type: ignore


DOMAINS = [
    ("{choice: []}", "choice needs a list of one or more values, got []"),
    ("{choice: 3}", "choice needs a list of one or more values, got 3"),
    ("{choice: [{type: mamba}]}", "for alternatives with options of their own write {choose:"),
    ("{choice: [1, 1]}", "choice lists a value twice"),
    ("{choose: {}}", "choose needs a mapping of named nodes, got {}"),
    ("{choose: [mamba]}", "choose needs a mapping of named nodes"),
    ("{int: [3, 1]}", "int needs [lo, hi] with lo <= hi, got [3, 1]"),
    ("{int: [1, 2.5]}", "int needs [lo, hi] with lo <= hi, got [1, 2.5]"),
    ("{float: 3}", "float needs [lo, hi] with lo <= hi, got 3"),
    ("{float: [0, 1], log: true}", "needs lo > 0"),
    ("{int: [1, 4], step: 0}", "step must be a positive int, got 0"),
    (
        "{int: [1, 4], stepp: 2}",
        "'stepp' beside 'int'; did you mean 'step'? allowed: default, doc, log, prior, step",
    ),
    ("{choice: [1], int: [1, 2]}", "'int' beside 'choice': one decision has one of them"),
    ("{fraction: 3}", "write {fraction: true}"),
    ("{composition: 1, parts: [a, b]}", "composition of 1 into 2 parts"),
    ("{composition: 4}", "composition needs parts"),
    ("$nothing", "$nothing is not defined; allowed: nothing here"),
]


@pytest.mark.parametrize(("node", "message"), DOMAINS)
def test_illegal_domains(tmp_path: Path, node: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        space(tmp_path, f"model:\n  dim: {node}\n  layers: 1\n  topology: {{type: parallel}}\n")
    assert "s.yaml:5:8: model.dim: " in str(caught.value)
    assert message in str(caught.value)


def test_one_wrong_alternative_is_found_wherever_it_hides(tmp_path: Path) -> None:
    text = MODEL.replace("temperature: 1.0", "temprature: 1.0").replace("[0, 3]", "[0, three]")
    with pytest.raises(SpecError) as caught:
        space(tmp_path, text)
    found = str(caught.value)
    assert len(caught.value.problems) == 2, found
    assert (
        "s.yaml:8:22: model.topology.branches[0].conv: got 'three'; must be a valid inte" in found
    )
    assert (
        ": model.topology.merge.temprature: unknown key 'temprature'; did you mean 'temp" in found
    )


def test_a_width_that_never_fits_is_found(tmp_path: Path) -> None:
    """5 heads divide no dim on offer: an error. 4 heads divide some: those draws are redrawn."""
    model = "model: {dim: {choice: [16, 24]}, layers: 1, topology: {choose: {interleave: %s}}}\n"
    five = "{major: {choose: {mamba: {}, retention: {heads: 5}}}}"
    with pytest.raises(
        SpecError, match=r"s.yaml:4:1\d\d: model.topology.major: retention: heads \(5\)"
    ):
        space(tmp_path, model % five)
    eight = "{major: {choose: {mamba: {}, retention: {heads: 8}}}}"  # 24 / 8 = 3 is odd
    loaded = space(tmp_path, model % eight)
    for seed in range(30):
        build(loaded.sample(seed), vocab=4)


def test_names_that_lead_in_circles(tmp_path: Path) -> None:
    text = "define: {a: $b, b: $a}\nmodel: {dim: $a, layers: 1, topology: {type: interleave, major: mamba}}\n"
    with pytest.raises(SpecError, match=r"\$a -> \$b -> \$a never ends"):
        space(tmp_path, text)
    with pytest.raises(SpecError, match="a shared decision stands alone"):
        space(tmp_path, "shared: {a: $b, b: 3}\nmodel: {dim: $a, layers: 1, topology: {}}\n")


WRONG = [
    (
        "baselines: [retnett]\n",
        r"s.yaml:\d+:\d+: baselines\[0\]: got 'retnett'; must be 'retnet', 'mamba',",
    ),
    ("seed: -1\n", r"s.yaml:\d+:7: seed: got -1; must be greater than or equal to 0"),
    (
        "budgets: {parameters: {max: 4kk}}\n",
        r"parameters.max: got '4kk'; must be a number with a unit of k",
    ),
    (
        "budgets: {params: {max: 4k}}\n",
        r"budgets.params: unknown key 'params'; did you mean 'parameters'",
    ),
    (
        "train: {lr: {choice: [1, 2]}}\n",
        r"train.lr: got .*; must be a number above 0, or a list of different ones",
    ),
    ("train: {steps: 5, rungs: [9]}\n", r"train: rungs \[9\] must rise and end by steps \(5\)"),
    (
        "search: {sampler: tpee}\n",
        r"search.sampler: got 'tpee'; must be 'evolution', 'tpe', 'nsga2', 'gp', 'random' or 'exh",
    ),
    ("nam: 3\n", r"s.yaml:\d+:1: nam: unknown key 'nam'; did you mean 'name'\?"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_the_rest_of_the_document_is_strict(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        space(tmp_path, line + MODEL)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("[]", "tasks: got .*; must be|tasks: .*at least 1 item"),
        ("[{type: langage}]", r"unknown type 'langage'; did you mean 'language'\?"),
        ("[{type: language, lenght: 3}]", r"unknown key 'lenght'; did you mean 'length'\?"),
        ("[{type: language, length: x}]", r"tasks\[0\].length: got 'x'; must be a valid integer"),
        ("[{type: language}, {type: language}]", "each type once, scores are kept by name"),
    ],
)
def test_tasks_are_strict(tmp_path: Path, tasks: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(f"archsearch: 1\nname: t\ntasks: {tasks}\n" + MODEL)
    with pytest.raises(SpecError, match=message):
        load_space(tmp_path / "s.yaml")


def test_a_data_path_is_relative_to_the_file(tmp_path: Path) -> None:
    tasks = "[{type: language, data: corpus.txt}]"
    (tmp_path / "s.yaml").write_text(f"archsearch: 1\nname: t\ntasks: {tasks}\n" + MODEL)
    (task,) = load_space(tmp_path / "s.yaml").file.tasks
    assert task.data == str(tmp_path / "corpus.txt")  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted((ROOT / "spaces").glob("*.yaml")), ids=lambda p: p.name)
def test_spaces_on_offer_are_legal_and_say_what_they_ask(path: Path) -> None:
    loaded = load_space(path)
    assert loaded.warnings == []
    assert loaded.name == path.stem
    assert path.read_text().startswith("# ")
    assert f"archsearch study spaces/{path.name}" in path.read_text()
    number, _ = census.size(loaded)
    share = census.estimate(loaded, 12)
    assert number >= len(share.hashes) > 1
    assert share.within >= 2, share  # most of what is drawn may be trained
    for seed in range(3):
        build(loaded.sample(seed), loaded.file.ends)
