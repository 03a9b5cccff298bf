"""What takes long to make is made once, whoever asks, and anew when the code that makes it changed."""

from types import ModuleType

import pytest
import torch

from archsearch.tasks import cache, listops, snakes


def test_arrays_are_made_once_and_mapped() -> None:
    made = [torch.arange(6, dtype=torch.uint8).view(2, 3), torch.empty(0, 4), torch.tensor([2.5])]
    calls = []

    def make() -> list[torch.Tensor]:
        calls.append(None)
        return made

    first, again = (cache.arrays("test", {"what": "arrays"}, make) for _ in range(2))
    for read in (first, again):
        assert all(map(torch.equal, read, made))
        assert [x.dtype for x in read] == [x.dtype for x in made]
    assert len(calls) == 1
    first[0][0, 0] = 9  # stays here
    assert cache.arrays("test", {"what": "arrays"}, make)[0][0, 0] == 0
    cache.arrays("test", {"what": "others"}, make)
    assert len(calls) == 2


def test_code_that_changed_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.code(listops, snakes)
    assert before == cache.code(listops, snakes) != cache.code(snakes)
    texts = {listops: "a", snakes: "b"}

    def source(module: ModuleType) -> str:
        return texts[module]

    monkeypatch.setattr("inspect.getsource", source)
    assert cache.code(listops, snakes) not in (before, cache.code(snakes, listops))
