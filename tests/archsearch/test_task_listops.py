"""ListOps: every class told anew by another parser, the published grammar, splits that share none."""

import statistics
from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from archsearch.ends import Classes, Ends, Tokens
from archsearch.tasks import TaskError, listops
from archsearch.tasks.listops import ListOps

torch.set_num_threads(1)

WORDS = ["", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]"]
REDUCE = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
SPLITS = ("train", "val", "test")


def parse(words: list[str]) -> list:
    """A tree of [operator, argument, ...], by a stack; digits are ints."""
    stack: list[list] = [[]]
    for word in words:
        if word in REDUCE:
            stack.append([word])
        elif word == "]":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(int(word))
    ((tree,),) = stack
    return tree


def value(tree) -> int:
    return tree if isinstance(tree, int) else REDUCE[tree[0]]([value(arg) for arg in tree[1:]])


def lists(tree, level: int = 1):
    """(level, list) of all lists in a tree."""
    if isinstance(tree, list):
        yield level, tree
        for arg in tree[1:]:
            yield from lists(arg, level + 1)


def strings(ids: torch.Tensor) -> list[list[str]]:
    return [[WORDS[i] for i in row if i] for row in ids.tolist()]


@pytest.fixture(scope="module")
def expressions() -> list[tuple[list[str], int]]:
    parts = [ListOps(train=9000).examples(split) for split in SPLITS]
    return [
        pair for ids, classes in parts for pair in zip(strings(ids), classes.tolist(), strict=True)
    ]


def test_every_class_is_what_another_parser_says(expressions) -> None:
    assert len(expressions) > 10_000
    assert all(value(parse(words)) == told for words, told in expressions)
    assert {told for _, told in expressions} == set(range(10))


def test_the_other_parser_knows_the_published_example() -> None:
    """Of Nangia and Bowman, and the medians of an even number that int() rounds down."""
    assert value(parse(["[MAX", "2", "9", "[MIN", "4", "7", "]", "0", "]"])) == 9
    assert value(parse(["[MED", "1", "2", "3", "8", "]"])) == 2
    assert value(parse(["[MED", "8", "1", "4", "]"])) == 4
    assert value(parse(["[SM", "9", "8", "7", "]"])) == 4


def test_expressions_follow_the_grammar(expressions) -> None:
    lengths = [len(words) for words, _ in expressions]
    assert min(lengths) == 8
    assert 40 < max(lengths) <= 48
    assert 14 < statistics.mean(lengths) < 16  # measured with the published code: 15
    found = [pair for words, _ in expressions for pair in lists(parse(words))]
    assert max(level for level, _ in found) == 3  # at the fourth all are digits
    assert {len(tree) - 1 for _, tree in found} == {2, 3, 4}
    shares = Counter(tree[0] for _, tree in found)
    assert all(share / len(found) == pytest.approx(0.25, abs=0.01) for share in shares.values())


def test_arguments_and_nesting_are_drawn_as_published() -> None:
    """Where hardly any length is refused, which would favour some shapes."""
    ids, _ = ListOps(depth=3, args=5, shortest=4, longest=37).examples("train")
    trees = [parse(words) for words in strings(ids)]
    counts = Counter(len(tree) - 1 for tree in trees)
    two = counts.pop(2)  # short ones come twice, and once only is kept
    assert 0.6 < two / counts[3] < 0.95
    assert [counts[n] / counts.total() for n in (3, 4, 5)] == pytest.approx([1 / 3] * 3, abs=0.03)
    args = [arg for tree in trees if len(tree) > 3 for arg in tree[1:]]
    assert sum(isinstance(arg, list) for arg in args) / len(args) == pytest.approx(0.25, abs=0.03)
    digits = Counter(arg for arg in args if isinstance(arg, int))
    assert min(digits.values()) > 0.8 * max(digits.values())


def test_no_expression_comes_twice_in_whatever_split(expressions) -> None:
    assert len({" ".join(words) for words, _ in expressions}) == len(expressions)
    sizes = [len(ListOps(train=123).examples(split)[0]) for split in SPLITS]
    assert sizes == [123, 512, 512]


def test_evaluation_sets_do_not_depend_on_how_many_train() -> None:
    few, many = ListOps(train=100), ListOps()
    assert torch.equal(few.examples("val")[0], many.examples("val")[0])
    assert torch.equal(few.examples("train")[0], many.examples("train")[0][:100])


def test_long_expressions_are_of_the_length_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops, "HELD_OUT", 10)
    monkeypatch.setattr(listops, "CHUNK", 100)
    ids, classes = listops._drawn(10, 10, 501, 1999, 100)[:2]
    rows = strings(ids)
    assert all(501 <= len(words) <= 1999 for words in rows)
    assert [value(parse(words)) for words in rows] == classes.tolist()
    assert max(len(tree) - 1 for words in rows for _, tree in lists(parse(words))) == 10


def test_what_is_kept_is_what_was_drawn() -> None:
    """By whoever reads it, another process or this one again."""
    kept = [ListOps(train=50).examples(split) for split in SPLITS]
    listops._sets.cache_clear()
    again = [ListOps(train=50).examples(split) for split in SPLITS]
    drawn = listops._drawn(4, 4, 8, 48, 50)
    for read in (kept, again):
        flat = [tensor for pair in read for tensor in pair]
        assert all(map(torch.equal, flat, drawn))
        assert [tensor.dtype for tensor in flat] == [tensor.dtype for tensor in drawn]


def test_the_ends_fill_up_with_what_no_expression_has(expressions) -> None:
    task = ListOps()
    assert task.ends == Ends(Tokens(16, pad=0), Classes(10))
    assert not task.causal
    ids, _ = task.examples("val")
    filled = ids == 0
    assert (filled.int().diff(dim=1) >= 0).all()  # only ever at the end
    inputs, _ = task.sample(4, torch.Generator().manual_seed(0))
    assert inputs.shape == (4, 48)


def test_the_floor_knows_the_root_operator() -> None:
    """Fitted in train and asked in val, by counting."""
    task = ListOps()
    (train, told), (val, asked) = task.examples("train"), task.examples("val")
    counts = Counter(zip(train[:, 0].tolist(), told.tolist(), strict=True))
    best = {op: max(range(10), key=lambda c: counts[op, c]) for op in range(11, 15)}
    right = [best[op] == c for op, c in zip(val[:, 0].tolist(), asked.tolist(), strict=True)]
    floors = task.floors()
    assert [*floors] == ["class given the root operator", "most frequent class"]
    assert task.floor["accuracy"] == pytest.approx(statistics.mean(right))
    assert task.floor["accuracy"] > floors["most frequent class"]["accuracy"] + 0.05
    assert task.floor["loss"] < floors["most frequent class"]["loss"]


@pytest.mark.parametrize(
    "options",
    [{"shortest": 49}, {"depth": 2, "args": 5, "shortest": 8}, {"shortest": 30, "longest": 20}],
)
def test_lengths_that_no_expression_has(options) -> None:
    with pytest.raises(ValidationError, match=r"no expression has \d+ tokens at least .* reaches"):
        ListOps(**options)


def test_the_longest_that_is_possible_is_allowed() -> None:
    assert ListOps(depth=2, args=6, shortest=8, longest=9).longest == 9


def test_too_few_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listops, "TRIES", 20)
    with pytest.raises(TaskError, match=r"listops: of 20480 .* Raise `depth` or `args`, widen"):
        ListOps(depth=2, args=2, shortest=4).prepare()
