"""The texts around an exported model: how it is used, what it costs, how it was trained.

Figures come from the study's own files and the counters; what was not measured is not there.
"""

import json
from importlib.metadata import distribution
from typing import Any

from archsearch.catalogue import block_files
from archsearch.costs import cost
from archsearch.ends import Ends, Tokens
from archsearch.origin import Origin
from archsearch.recipe import Training
from archsearch.spec import ModelSpec
from archsearch.units import BYTES, COUNT, Cost

CONTEXT = 1024
"""Tokens that costs are told at."""
FLOPS, SIZE = Cost("", "", 1000, COUNT), Cost("", "", 1024, BYTES)


def init(about: dict[str, str], ends: Ends) -> str:
    """__init__.py: what the package offers."""
    text = INIT.format(**about)
    if ends.tied:
        return text
    names = 'generate", "load", "load_weights", "prefill", "sample'
    text = text.replace("from .generation import generate, prefill, sample\n", "")
    return text.replace(names, 'load", "load_weights')


def project(about: dict[str, str]) -> str:
    """pyproject.toml: `pip install ./MODEL`."""
    return PROJECT.format(**about)


def papers(origin: Origin, name: str) -> dict[str, str]:
    """What every form has beside its code, by name: the spec, its own blocks, training, licence."""
    texts = {
        "architecture.yaml": origin.spec.to_yaml(name, home="original/"),
        "LICENSE": distribution("archsearch").read_text("licenses/LICENSE") or "",
    }
    for file, block in block_files(origin.spec).items():
        texts[f"original/{file}"] = block.text
    if origin.training is not None:
        texts["training.json"] = json.dumps(origin.training, indent=1)
    return texts


def readme(about: dict[str, str], origin: Origin) -> str:
    """README.md of a package: use, costs, training, files."""
    spec, ends = origin.spec, origin.ends
    reads, (read, given) = ends.reads, ends.shapes
    if isinstance(reads, Tokens):
        example = f"torch.randint({reads.vocab}, (1, 16))"
    else:
        example = f"torch.randn(1, 16, {reads.channels})"
    y = given.split()[0]
    use = [f"{reads.name} = {example}", f"{y}, state = model({reads.name})    # {given}"]
    if ends.streams and spec.causal:
        use.append(f"{y}, state = model({reads.name}[:, :1], state)   # goes on from the state")
    generates = ends.tied and spec.causal
    return README.format(
        **about,
        read=read,
        use="\n".join(use),
        loop=LOOP.format(**about) if generates else "",
        generation=GENERATION.format(**about) if generates else "",
        costs="\n".join(costs(spec, ends)),
        training="\n".join(training(origin.training)),
        original=originals(spec),
    )


def costs(spec: ModelSpec, ends: Ends) -> list[str]:
    """The lines of a table counted from the code."""
    try:
        counted = cost(spec, ends, batch=1, seq_len=CONTEXT)
    except ValueError as error:  # a block of fixed length
        return [f"Not counted at {CONTEXT} tokens: {error}."]
    rows = [
        ("parameters", f"{counted.parameters:,}"),
        ("FLOPs of a forward pass, per token", FLOPS.tell(counted.flops_per_token)),
        ("FLOPs of a training step, per token", FLOPS.tell(counted.train_flops_per_token)),
    ]
    if spec.causal and ends.streams:
        rows.append(("FLOPs of one more token", FLOPS.tell(counted.decode_flops)))
        rows.append(("state carried from token to token", SIZE.tell(counted.state_bytes)))
    head = [f"| of one sequence of {CONTEXT} tokens, float32 | |", "|---|---|"]
    return [*head, *(f"| {name} | {value} |" for name, value in rows)]


def training(about: dict[str, Any] | None) -> list[str]:
    """Lines: what it learned, for how long, how well; and what was timed."""
    if about is None:
        return ["It has not been trained: its weights are random."]
    trial, recipe = about["trial"], Training.model_validate(about["recipe"])
    runs = [run for run in trial["runs"] if run["split"] == "val"]
    lines = [
        f"One of {about['counts']['proposed']} proposals of the study {about['study']}, "
        f"by archsearch {about['archsearch']}. Each task was learned alone, from new weights, "
        f"for {recipe.amount}; the weights here are those of the first. `training.json` has all of "
        "it.",
        "",
        "| task | metric | validation | test, mean of fresh seeds |",
        "|---|---|---|---|",
    ]
    tests = [run for run in trial["runs"] if run["split"] == "test"]
    for task, scores in runs[0]["tasks"].items():
        for metric, value in {"loss": scores["loss"], **scores["metrics"]}.items():
            finals = [{"loss": t["loss"], **t["metrics"]}[metric] for t in _tasks(tests, task)]
            mean = f"{sum(finals) / len(finals):.4g} ({len(finals)})" if finals else ""
            lines.append(f"| {task} | {metric} | {value:.4g} | {mean} |")
    return lines + _speed(trial.get("speed") or {})


def originals(spec: ModelSpec) -> str:
    """The lines of the table of files that tell of blocks from elsewhere."""
    return "".join(ORIGINAL.format(name=name) for name in block_files(spec))


def _tasks(runs: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    return [run["tasks"][task] for run in runs if task in run["tasks"]]


def _speed(speed: dict[str, Any]) -> list[str]:
    """Tokens per second, where the study timed them."""
    if "machine" not in speed:
        return []
    machine = speed["machine"]
    where = machine.get("accelerator") or machine["cpu"]
    size = f"batch {speed['batch']}, {speed['length']} tokens, {speed['precision']}"
    told = [
        f"{speed[name]['tokens_per_second']:,.0f} tokens per second in {words}"
        for name, words in (("train", "training"), ("decode", "decoding"))
        if name in speed
    ]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return ["", f"{'; '.join(told)} ({size}; {where}, {threads}, torch {machine['torch']})."]


INIT = '''"""{summary}

From archsearch: {origin}. Needs PyTorch and nothing else.
"""

import json
from pathlib import Path

from .generation import generate, prefill, sample
from .model import Model
from .weights import load_weights

HERE = Path(__file__).parent
config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))


def load() -> Model:
    """The model with its weights, in evaluation mode."""
    model = Model()
    model.load_state_dict(load_weights(HERE / "model.safetensors"))
    return model.eval()


__all__ = ["Model", "config", "generate", "load", "load_weights", "prefill", "sample"]
'''

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = {summary!r}
readme = "README.md"
requires-python = ">=3.11"
license = "Apache-2.0"
license-files = ["LICENSE"]
dependencies = ["torch>={torch}"]

[tool.setuptools]
packages = ["{name}", "{name}.blocks", "{name}.kernels"]
package-dir = {{ "{name}" = "." }}

[tool.setuptools.package-data]
"{name}" = ["*.json", "*.safetensors", "*.yaml"]
"""

README = """# {name}

{summary}

{origin}.

The folder is a Python package that imports PyTorch and nothing else; `model.py` is the
architecture, line by line, over the files in `blocks/` and `kernels/`. It runs from where it lies,
or from anywhere after `pip install ./{name}`.

```python
import torch
import {name}

model = {name}.load()
{use}
{loop}```

It reads {read}, any T >= 1. The model trains like any `nn.Module`. `python -m {name}` checks that
this copy is whole and computes what it computed where it was made.
{generation}
## What it costs

{costs}

## How it was trained

{training}

## Files

| | |
|---|---|
| `model.py` | the architecture |
| `blocks/`, `kernels/` | what it is made of, as it is in archsearch |
| `architecture.yaml`, `config.json` | the spec, which archsearch reads back; what the package is |
| `model.safetensors` | the weights |
| `check.py`, `check.safetensors` | the self-check, and what it compares with |
| `LICENSE` | of the code that is archsearch's: Apache 2.0 |
{original}"""

ORIGINAL = (
    "| `original/{name}` | a block from elsewhere as it came, of which the {name} of this model is "
    "made; "
    "its author's licence holds for both |\n"
)

LOOP = """for token in {name}.generate(model, tokens, steps=20):
    print(token.item())
"""

GENERATION = """
## Generation

`python -m {name} "a prompt"` continues a prompt on the command line. In Python `generate` takes
`temperature`, `top_k` and `top_p`, a batch of prompts of one length, and `chunk` for prompts too
long to be read at once. It keeps a state and no tokens; what it is made of lets you put one away:

```python
logits, state = {name}.prefill(model, tokens, chunk=512)
torch.save(state, "state.pt")                    # what was read, of the size of the state
token = {name}.sample(logits, temperature=0.7, top_p=0.9)
logits, state = {name}.prefill(model, token[:, None], torch.load("state.pt"))
```
"""
