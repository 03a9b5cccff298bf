"""YAML is read strictly: 1.2 scalars, no traps, a place for everything."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from archsearch.errors import SpecError, UserError
from archsearch.reading import MAX_BYTES, MAX_DEPTH, parse, plain_scalar, read, write

SCALARS = [
    ("1:5", "1:5"), ("1e-3", 0.001), ("1.2e6", 1.2e6), ("no", "no"), ("on", "on"), ("010", 10),
    ("0o17", 15), ("0x1F", 31), ("null", None), ("~", None), ("", None), ("true", True),
    ("Yes", "Yes"), (".5", 0.5), ("1.", 1.0), (".inf", math.inf), ("-.inf", -math.inf), ("+3", 3),
    ("1_000", "1_000"), ("2026-11-20", "2026-11-20"), ("0.1.0", "0.1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_yaml_1_2(text: str, value: object) -> None:
    got = plain_scalar(text)
    assert got == value
    assert type(got) is type(value)


def test_quoted_scalars_are_strings() -> None:
    assert parse("{a: '1', b: \"no\", c: 'null'}").data == {"a": "1", "b": "no", "c": "null"}


KEYS = st.text(max_size=8).filter(lambda key: key != "<<")
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"[-+]?[0-9_.:]+([eE][-+]?[0-9]+)?|0[box][0-9a-f]+", fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
def test_what_is_written_is_read_back(data: dict) -> None:
    """By us, every value with its place, and by a reader of YAML 1.1."""
    assert yaml.safe_load(write(data)) == data
    document = parse(write(data))
    assert document.data == data
    for key in data:
        assert (key,) in document.places
        assert (key,) in document.keys


def test_places_count_from_one() -> None:
    document = parse("a: 1\nb:\n  - x\n  - {c: 2}\n", "f.yaml")
    assert str(document.places["b", 1, "c"]) == "f.yaml:4:9"
    assert str(document.keys["b", 1, "c"]) == "f.yaml:4:6"
    assert str(document.place(("b", 1, "missing"))) == "f.yaml:4:5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", r"f:2:1: a: a second 'a'; the first is at f:1:1"),
        ("a: &x 1\nb: *x", r"f:1:4: anchor &x; name the value under define:"),
        ("b: *x", r"f:1:4: alias \*x; say shared: or define: and \$x"),
        ("a: {<<: {b: 1}}", r"f:1:5: a: merge keys \(<<\) are not part of the language"),
        ("a: !!python/object:os.system x", r"f:1:4: tag .* not part of the language"),
        ("a: !!int x", r"f:1:4: tag .* not part of the language"),
        ("a: 1\n---\nb: 2", r"f:2:1: a second document"),
        ("? [1, 2]\n: 3", r"f:1:3: a key must be a string"),
        ("- 1", r"f:1:1: expected a mapping at the top"),
        ("", r"f:1:1: expected a mapping at the top"),
        ("a: [1", r"f:2:1: not YAML"),
        ("a: b: c", r"f:1:5: not YAML: mapping values are not allowed here"),
        ("a: " + "[" * 100 + "]" * 100, rf"nested deeper than {MAX_DEPTH} levels"),
        ("a: \x00", r"not YAML"),
    ],
)
def test_traps_are_errors_with_a_place(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(text + "\n", "f")


def test_a_merge_bomb_costs_nothing() -> None:
    levels = "\n".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 30))
    with pytest.raises(SpecError, match="anchor"):
        parse("a0: &a0 {x: 1}\n" + levels)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        parse("a: 1\na: 2\nb: !t 1\nb: 2\n")
    assert len(caught.value.problems) == 3


def test_unreadable_files(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read \(No such file"):
        read(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match=f"at most {MAX_BYTES}"):
        read(tmp_path / "big.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(UserError, match="byte 3 is not UTF-8"):
        read(tmp_path / "latin.yaml")
