"""Whatever is done to a space, reading it ends soon, in little memory, with a legal space or words.

Real spaces are mutated, as text and as data. CASES says how many in the long run:

    CASES=50000 pytest -m slow tests/archsearch/test_fuzz.py
"""

import contextlib
import copy
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archsearch import census, load_space
from archsearch.errors import SpecError, UserError
from archsearch.reading import read, write
from archsearch.space import Space

SPACES = sorted((Path(__file__).parents[2] / "spaces").glob("*.yaml"))
TEXTS = [path.read_text() for path in SPACES]
TREES = [read(path).data for path in SPACES]
SECONDS = 2.0  # of processor time
MEGABYTES = 500
VALUES: list[Any] = [
    0, -1, 1, 10**6, 10**30, 1.5, 1e308, float("nan"), float("inf"), None, True, "", "x" * 300,
    "$", "$nothing", "$mixer", "$mamba", "=", "=dim", "=layers // 7", "=1 / 0", "=9 * " * 20 + "9",
    "mamba", "retention", "é\n", [], {}, [[]], {"type": "mamba"}, {"type": "bidirectional"},
    {"choice": []}, {"choice": [1, "$mamba"]}, {"choose": {"mamba": {}, "x": None}},
    {"int": [1, 10**9]}, {"float": [1e-300, 1e300], "log": True}, {"fraction": True}, {"solve": [1, 9]},
    {"composition": 60, "parts": list("abcdef")}, {"simplex": 9}, {"repeat": "$mixer", "times": 256},
    {"repeat": {"mixer": "mamba"}, "times": "=layers", "at": {"::2": {"mixer": "rnn"}}},
    {"repeat": {"repeat": [1], "times": 99}, "times": 99},
]  # fmt: skip
CHARACTERS = list(" \n\t:{}[],&*!|>'\"%@`#$=-?0aé\x00\ufeff\u2028")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """TimeoutError after SECONDS of the processor, however busy the machine is."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {SECONDS} s")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def paths(node: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from paths(node[key], (*path, key))


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """One edit somewhere: another value, none, a subtree from elsewhere, a decision around it."""
    tree = copy.deepcopy(tree)
    places = list(paths(tree))
    *above, key = rng.choice(places)
    parent = at(tree, tuple(above))
    match rng.randrange(7):
        case 0 | 1:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        case 2:
            del parent[key]
        case 3:
            parent[key] = copy.deepcopy(at(tree, rng.choice(places)))
        case 4:
            parent[key] = {"choice": [parent[key], copy.deepcopy(rng.choice(VALUES))]}
        case 5:
            parent[key] = {"choose": {"mamba": parent[key], "retention": {}}}
        case 6 if isinstance(parent, dict):
            parent[str(key) + rng.choice("sx_")] = parent.pop(key)
    return tree


def mutated_text(text: str, rng: random.Random) -> str:
    """One edit somewhere: characters gone, put in, or a line said again or moved."""
    i = rng.randrange(len(text))
    lines = text.splitlines(keepends=True)
    j = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            return text[:i] + text[i + rng.randrange(1, 20) :]
        case 1:
            return text[:i] + "".join(rng.choices(CHARACTERS, k=rng.randrange(1, 4))) + text[i:]
        case 2:
            return "".join([*lines[:j], lines[j], *lines[j:]])
    return "".join([*lines[:j], " " * rng.randrange(1, 4) + lines[j], *lines[j + 1 :]])


def mutant(seed: int) -> str:
    rng = random.Random(seed)
    if rng.random() < 0.3:
        text = rng.choice(TEXTS)
        for _ in range(rng.randrange(1, 4)):
            text = mutated_text(text, rng)
        return text
    tree = rng.choice(TREES)
    for _ in range(rng.randrange(1, 4)):
        tree = mutated_tree(tree, rng)
    return write(tree)


def used(space: Space) -> None:
    """What is asked of a space before any training."""
    rng = random.Random(0)
    with contextlib.suppress(UserError):
        census.size(space)
    with contextlib.suppress(SpecError):
        space.legal(space.resolve(lambda _, domain: domain.draw(rng))).to_yaml()


def survive(path: Path, seed: int) -> str:
    """Reads a mutant: legal, or refused in words."""
    path.write_bytes(mutant(seed).encode("utf-8", "surrogatepass"))
    with limited():
        try:
            space = load_space(path)
        except UserError as error:
            assert str(error).strip()
            return "refused"
        used(space)
    return "legal"


def fuzz(folder: Path, cases: int) -> None:
    seen: dict[str, int] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=cases, deadline=None, derandomize=True, database=None,
        suppress_health_check=(HealthCheck.too_slow,),
    )  # fmt: skip
    @given(st.integers(0, 10**12))
    def no_mutant_gets_through(seed: int) -> None:
        verdict = survive(folder / "s.yaml", seed)
        seen[verdict] = seen.get(verdict, 0) + 1

    no_mutant_gets_through()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB more"
    assert min(seen["legal"], seen["refused"]) > cases // 50, seen  # both happen
    print(f"{seen}, {grown:.0f} MB more")


def test_mutants_are_refused_in_words(tmp_path: Path) -> None:
    fuzz(tmp_path, 100)


@pytest.mark.slow
def test_many_mutants_are_refused_in_words(tmp_path: Path) -> None:
    fuzz(tmp_path, int(os.environ.get("CASES", "2000")))
