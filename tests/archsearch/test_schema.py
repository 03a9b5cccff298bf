"""`archsearch schema`: what is legal passes, however it is decorated; what is mistyped does not."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema.exceptions import best_match

from archsearch import baselines, cli, listing, plugins, reading, schema, static
from archsearch.blocks import Family, Mixer
from archsearch.catalogue import FAMILIES, options_of
from archsearch.resolving import Sections
from archsearch.schema import fields
from archsearch.spec import ModelSpec

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "spaces" / "space.schema.json"
MEMBERS = [cls for family in FAMILIES.values() for cls in family.members.values()]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [
    *(path.read_text() for path in sorted((ROOT / "spaces").glob("*.yaml"))),
    *(text for page in DOCS for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)),
]


@pytest.fixture(scope="module")
def check() -> jsonschema.Draft7Validator:
    made = schema.schema()
    jsonschema.Draft7Validator.check_schema(made)
    return jsonschema.Draft7Validator(made)


def told(check: jsonschema.Draft7Validator, data: Any) -> str:
    """What is said against it; nothing of a legal document."""
    error = best_match(check.iter_errors(data))
    return f"{list(error.absolute_path)}: {error.message}" if error else ""


def test_the_committed_schema_is_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "schema") == 0
    fresh = capsys.readouterr().out == COMMITTED.read_text()
    assert fresh, "run `archsearch schema --out spaces/space.schema.json`"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["archsearch", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code if isinstance(left.value.code, int) else 0


@pytest.mark.parametrize("path", sorted((ROOT / "spaces").glob("*.yaml")), ids=lambda p: p.name)
def test_every_space_on_offer_names_its_schema(path: Path) -> None:
    (name,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.M)
    assert (path.parent / name) == COMMITTED


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_written_here_passes(text: str, check: jsonschema.Draft7Validator) -> None:
    assert told(check, reading.parse(text).data) == ""


def test_every_block_and_reference_passes(check: jsonschema.Draft7Validator) -> None:
    for cls in MEMBERS:
        assert told(check, reading.parse(listing.snippet(cls)).data) == "", cls.name
    for name in baselines.DESIGNS:
        text = baselines.reference(name, size="medium").to_yaml(name)
        assert told(check, reading.parse(text).data) == "", name


class Decorator:
    """Says the same model otherwise: decisions between one thing, names, expressions, repeats."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.document: dict[str, Any] = {"archsearch": 1, "shared": {}, "define": {}}

    def value(self, plain: Any, often: float = 0.35) -> Any:
        """A node that resolves to `plain`."""
        inner = self.below(plain)
        if self.rng.random() > often:
            return inner
        ways = [self.defined, self.chosen, *self.ways(plain)]
        made = self.rng.choice(ways)(inner)
        return made if made is not None else inner

    def below(self, plain: Any) -> Any:
        if isinstance(plain, dict):
            return {key: self.value(child) for key, child in plain.items()}
        if isinstance(plain, list):
            items = [self.value(item) for item in plain]
            return [self.once(item) if self.rng.random() < 0.2 else item for item in items]
        return plain

    def ways(self, plain: Any) -> list[Any]:
        if isinstance(plain, bool) or plain is None or isinstance(plain, str):
            return [self.arm, self.shared]
        if isinstance(plain, int | float):
            kind = "int" if isinstance(plain, int) else "float"
            pair = [plain, plain]
            return [
                self.arm,
                self.shared,
                lambda _: f"={plain}",
                lambda _: {kind: pair, **self.beside(plain, pair)},
                lambda _: {kind: [f"={plain}", plain], "step": 1},
            ]
        if isinstance(plain, list):
            same = all(item == plain[0] for item in plain)
            repeated = {"repeat": plain[0], "times": len(plain)} if same and plain else None
            return [self.arm, lambda _: repeated]
        if "type" in plain:
            return [self.arm, self.member, self.member]
        total = sum(plain.values()) if all(type(v) is int for v in plain.values()) else 0
        if not total:
            return []
        summed = "+".join(map(str, plain.values()))
        return [
            lambda _: {"composition": total, "parts": list(plain), "default": summed},
        ]

    def beside(self, default: Any, prior: Any) -> dict[str, Any]:
        extras = {"default": default, "prior": prior, "doc": "why"}
        return {key: extras[key] for key in extras if self.rng.random() < 0.3}

    def name(self, section: str, node: Any) -> str:
        name = f"n{len(self.document['shared']) + len(self.document['define'])}"
        self.document[section][name] = node
        return f"${name}"

    def defined(self, node: Any) -> Any:
        return self.name("define", node)

    def shared(self, node: Any) -> Any:
        name = self.name("shared", node)
        return self.rng.choice([name, "=" + name[1:]])

    def chosen(self, node: Any) -> Any:
        if isinstance(node, dict) or (isinstance(node, str) and node.startswith("=")):
            node = self.defined(node)
        return {"choice": [node], **self.beside(node, [0.5])}

    def arm(self, node: Any) -> Any:
        if node is None:  # an arm of null is its name alone
            return None
        return {"choose": {"one": node}, **self.beside("one", {"one": 2})}

    def member(self, node: Any) -> Any:
        """An arm that is called like the part's type, which is then left out."""
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            return None
        if node["type"][0] in "$=":
            return None
        options = {key: child for key, child in node.items() if key != "type"}
        body = self.rng.choice([options, self.defined(options), node])
        return {"choose": {node["type"]: body}}

    def once(self, node: Any) -> Any:
        extras = {"share": True, "at": {"0": node}}
        return {
            "repeat": node,
            "times": self.rng.choice([1, "=1"]),
            **{key: extras[key] for key in extras if self.rng.random() < 0.3},
        }

    def model(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The document of a model."""
        model = {key: self.value(child) for key, child in plain.items()}
        if self.rng.random() < 0.2:
            model["layers"] = {"solve": [plain["layers"], 64], "step": 2}
        return {**self.document, "model": model}


@pytest.mark.parametrize("seed", range(20))
def test_a_legal_model_passes_however_it_is_said(
    fusion: ModelSpec, seed: int, check: jsonschema.Draft7Validator
) -> None:
    """And it is legal: nothing is wrong with it, and it resolves to what it was."""
    plain = fusion.model_dump(mode="json")
    document = Decorator(random.Random(seed)).model(plain)
    sections = Sections(document)
    assert static.troubles(sections) == []
    assert sections.resolve(lambda name, domain: domain.default).data == plain
    assert told(check, document) == "", reading.write(document, flow=None)


def places(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Documents with a mixer where it may stand: outright, in an arm, under a name."""
    kind, options = part["type"], {k: v for k, v in part.items() if k != "type"}
    fine = {"dim": 64, "layers": 2, "topology": {"type": "interleave", "major": "$m"}}
    for major in (part, {"choose": {kind: options}}, {"choose": {"mine": part}}):
        model = {**fine, "topology": {"type": "interleave", "major": major}}
        yield {"archsearch": 1, "model": model}
        yield {"archsearch": 1, "define": {"m": major}, "model": fine}


@pytest.mark.parametrize("cls", Mixer.members.values(), ids=lambda c: c.__name__)
def test_a_mistyped_option_is_refused_wherever_it_stands(
    cls: type[Family], check: jsonschema.Draft7Validator
) -> None:
    for data in places({"type": cls.name}):
        assert check.is_valid(data)
    for option in options_of(cls)[:2]:
        typo, wrong = {option.name + "x": 3}, {option.name: {"nonsense": 3}}
        for broken in (typo, wrong, {option.name: "nonsense"}):
            for data in places({"type": cls.name, **broken}):
                assert not check.is_valid(data), data


def test_a_mistyped_option_of_any_part_is_refused(check: jsonschema.Draft7Validator) -> None:
    for cls in MEMBERS:
        text = listing.snippet(cls)
        option = next(iter(options_of(cls)), None)
        for old, new in [(f"type: {cls.name}\n", "type: nonsense\n")] + (
            [(f" {option.name}:", f" {option.name}x:")] if option else []
        ):
            assert old in text
            assert not check.is_valid(reading.parse(text.replace(old, new, 1)).data), (old, text)


SPACE = """archsearch: 1
name: s
seed: 1
define: {r: {choose: {retention: {heads: {int: [2, 8], step: 2}}}}}
model: {dim: 16, layers: 2, topology: {type: parallel, branches: [$r, mamba], merge: {choice: [sum]}}}
constraints: [{name: c, rule: "layers > 1"}]
budgets: {parameters: {max: 150k}, state: {max: 1.5 MiB, context: 64}}
tasks: [{type: in_context_recall, vocab: 8}]
train: {lr: 8e-3}
baselines: [retnet]
search: {sampler: tpe}
"""
MISTAKES = [
    ("seed: 1", "sede: 1"),
    ("seed: 1", "seed: one"),
    ("seed: 1", "seed: -1"),
    ("name: s\n", ""),
    ("name: s", "name: a b"),
    ("archsearch: 1", "archsearch: 2"),
    ("tasks: [{type: in_context_recall, vocab: 8}]\n", ""),
    ("tasks: [{type: in_context_recall, vocab: 8}]", "tasks: []"),
    ("in_context_recall", "recall"),
    ("vocab: 8", "vocabulary: 8"),
    ("vocab: 8", "vocab: 2"),
    ("150k", "150K"),
    ("1.5 MiB", "1.5"),
    ("max: 150k", "most: 150k"),
    ("parameters:", "params:"),
    ("8e-3", "{choice: [8e-3]}"),
    ("8e-3", "0"),
    ("[retnet]", "[retnett]"),
    ("tpe", "tpee"),
    (", rule", ", rull"),
    ("choice: [sum]", "choise: [sum]"),
    ("int:", "it:"),
    ("step: 2", "stepp: 2"),
    ("int: [2, 8]", "int: [2, 4, 8]"),
    ("int: [2, 8]", "float: [2, 8]"),
    ("int: [2, 8]", "int: [2, 8], choice: [2]"),
    ("choice: [sum]", "choice: [sun]"),
    ("choice: [sum]", "choice: []"),
    ("choice: [sum]", "choice: [{type: sum}]"),
    ("choice: [sum]", "choose: {sum: {scales: fixed}}"),
    ("{choice: [sum]}", "retention"),
    ("branches:", "branch:"),
    ("[$r, mamba]", "$r, mamba: 3"),
    ("[$r, mamba]", "[$r, mambo]"),
    ("[$r, mamba]", "[$r, {repeat: mamba}]"),
    ("[$r, mamba]", "[$r, {repeat: mamba, times: many}]"),
    ("layers: 2, ", ""),
    ("dim: 16", "dim: {fraction: true}"),
    ("dim: 16", "dim: {solve: [16]}"),
    ("dim: 16", "dim: {choose: {a: wide}}"),
    ("topology: {type: parallel", "topology: {typ: parallel"),
]


@pytest.mark.parametrize(("old", "new"), MISTAKES)
def test_mistakes_are_refused(old: str, new: str, check: jsonschema.Draft7Validator) -> None:
    assert old in SPACE
    assert told(check, reading.parse(SPACE).data) == ""
    assert told(check, reading.parse(SPACE.replace(old, new, 1)).data) != ""


MODEL = "archsearch: 1\nmodel: {dim: 16, layers: 2, topology: {type: interleave, major: %s}}\n"
UNUSUAL = [
    "extends: base.yaml\n",
    "extends: base.yaml\nname: other\nmodel: {layers: 3}\ntrain: {steps: 3}\n",
    MODEL % "{type: {choice: [rnn, gru]}, conv: 4}",
    MODEL % "{type: $kind, heads: 4}",
    MODEL % "{choose: {a: mamba, b: {type: gru}, gla: , lstm: {type: rnn}, c: {choice: [$x]}}}",
    MODEL % "=mixer",
    "blocks: [mine.py]\ndefine: {m: {type: mine, size: 3}}\n" + MODEL % "{choice: [mine, $m]}",
    'define: {a: [1, {b: null}], b: {"type": {mixer: mamba}}, c: {low: {mixer: gru}}}\n'
    + MODEL % "$a",
]


@pytest.mark.parametrize("text", UNUSUAL)
def test_what_is_unusual_passes(text: str, check: jsonschema.Draft7Validator) -> None:
    assert told(check, reading.parse(text).data) == ""


def test_blocks_of_ones_own_are_completed_when_the_schema_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "blocks.md").read_text()
    code, space = (
        re.findall(rf"```{kind}\n(.*?)```", page, re.S)[0] for kind in ("python", "yaml")
    )
    monkeypatch.chdir(tmp_path)
    Path("moving_average.py").write_text(code)
    assert call(monkeypatch, "schema", "--out", "s.json", "--blocks", "moving_average.py") == 0
    for name in list(plugins._loaded):
        plugins.forget(name)
    check = jsonschema.Draft7Validator(json.loads(Path("s.json").read_text()))
    assert told(check, reading.parse(space).data) == ""
    assert "half_lif" in told(check, reading.parse(space.replace("half_life", "half_lif")).data)


def test_a_schema_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "schema", "--out", str(tmp_path / "no" / "s.json")) == 2
    assert (
        "cannot be written (No such file or directory); check the path" in capsys.readouterr().err
    )


def test_everything_says_what_it_is() -> None:
    made = schema.schema()
    found: list[tuple[str, str, Any]] = []
    for name, owner in {"": made, **made["definitions"]}.items():
        found += [(name, key, node) for key, node in owner.get("properties", {}).items() if node]
    assert len(found) > 200
    for name, key, node in found:
        if "$ref" in node:
            node = made["definitions"][node["$ref"].rpartition("/")[2]]
        assert node.get("description") or "doNotSuggest" in node, f"{name}.{key}"


def test_a_name_of_a_definition_means_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    met: dict[str, set[str]] = {}

    class Recorded(fields.Writer):
        def value(self, node: dict[str, Any]) -> dict[str, Any]:
            kinds = [fields.bare(form) for form in fields.forms(node)]
            met.setdefault(fields.label(node), set()).add(json.dumps(kinds, sort_keys=True))
            return super().value(node)

    monkeypatch.setattr(schema, "Writer", Recorded)
    schema.schema()
    assert len(met) > 30
    assert {name: kinds for name, kinds in met.items() if len(kinds) > 1} == {}
