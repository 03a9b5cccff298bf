"""Long generations: resident memory stays where it was, or grows by the cache and nothing else."""

import json
import subprocess
import sys
from typing import Any

import pytest

from archsearch import cost
from archsearch.blocks import Mixer
from archsearch.spec import ModelSpec

WARM, STEPS, DIM = 1_000, 10_000, 64
MARGIN = 2**20
"""Bytes. One token kept in each of 9,000 steps takes ten times as much; 0.1 MB come and go."""
GENERATION = """
import json, resource, sys
import torch
from archsearch import build
from archsearch.spec import ModelSpec
from archsearch.standalone.generation import generate

spec, warm, steps = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = build(ModelSpec.model_validate(spec), vocab=16).eval()
resident = []
for step, _ in enumerate(generate(model, torch.zeros(1, 8, dtype=torch.long), steps + 1)):
    if step in (warm, steps):
        with open("/proc/self/statm") as file:
            resident.append(int(file.read().split()[1]) * resource.getpagesize())
print(*resident)
"""


def one_layer(mixer: dict[str, Any]) -> ModelSpec:
    topology = {"type": "interleave", "major": mixer}
    data = {"dim": DIM, "layers": 1, "mlp": None, "topology": topology}
    return ModelSpec.model_validate(data)


def growth(spec: ModelSpec) -> int:
    """Of what a process holds, from the warm step on to the last."""
    asked = json.dumps([spec.model_dump(mode="json"), WARM, STEPS])
    command = [sys.executable, "-c", GENERATION, asked]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    return after - before


def state_bytes(spec: ModelSpec, tokens: int) -> int:
    return cost(spec, batch=1, seq_len=tokens, vocab=16).state_bytes


STREAMING = {name: cls for name, cls in Mixer.members.items() if cls.causal}
CONSTANT = {name: {"type": name} for name, cls in STREAMING.items() if not cls(DIM).grows}
CONSTANT |= {
    "attention, window": {"type": "attention", "window": 32},
    "attention, dilated, sinks": {"type": "attention", "window": 16, "dilation": 2, "sinks": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("mixer", CONSTANT.values(), ids=CONSTANT)
def test_memory_is_flat_where_the_state_is(mixer: dict[str, Any]) -> None:
    spec = one_layer(mixer)
    assert state_bytes(spec, WARM) == state_bytes(spec, STEPS)
    assert growth(spec) < MARGIN


@pytest.mark.slow
def test_memory_grows_by_the_cache_alone() -> None:
    """Held twice for a moment, as a longer one is written beside it, and kept by the allocator.

    1.4 to 2.6 times the cache was seen. Were older caches kept, it would be thousands of times.
    """
    spec = one_layer({"type": "attention"})
    cache = state_bytes(spec, STEPS) - state_bytes(spec, WARM)
    assert cache == 2 * DIM * 4 * (STEPS - WARM)
    assert 0.5 * cache < growth(spec) < 4 * cache
