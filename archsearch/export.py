"""The architecture as a package of its own: readable source, weights, config, README; torch alone.

    my_model/  __init__.py  __main__.py  model.py  generation.py  weights.py
               blocks/  kernels/          the files used, as they are here
               model.safetensors  config.json  README.md

The folder is written aside, loaded in a fresh process, and its logits compared bit for bit with the
model here; only then does it get its name.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from archsearch import standalone
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.loading import load_spec
from archsearch.model import Model, build
from archsearch.source import model_source, needed_files
from archsearch.spec import ModelSpec
from archsearch.standalone.weights import load_weights
from archsearch.tasks import TASKS

COPIED = ("generation.py", "weights.py", "__main__.py")
DOCSTRINGS = {"blocks": "The blocks that this model uses.", "kernels": "The operators under them."}


@dataclass(frozen=True)
class Source:
    """What is exported: an architecture, its weights or None if untrained, a line of origin."""

    spec: ModelSpec
    vocab: int
    weights: Path | None
    origin: str


def export(source: str | Path, out: str | Path) -> Path:
    """Writes the best architecture of a study, or a spec with untrained weights, as a package.

    Args:
        source: a study's folder, or a spec file.
        out: the folder to make; its name is the package's name.

    Raises:
        UserError: nothing to export, the folder exists, or its name cannot be imported.
    """
    out = Path(out).absolute()
    if not out.name.isidentifier():
        raise UserError(f"{out.name!r} cannot be imported; name the folder like a Python package")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or delete it")
    chosen = _best_of(Path(source)) if Path(source).is_dir() else _untrained(Path(source))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(chosen.spec, vocab=chosen.vocab).eval()
    if chosen.weights is not None:
        model.load_state_dict(load_weights(chosen.weights))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as aside:
        folder = Path(aside) / out.name
        _write(folder, model, chosen)
        _verify(folder, model)
        os.replace(folder, out)
    return out


def _best_of(study: Path) -> Source:
    folder = StudyFolder(study)
    record, space = folder.read_record(), folder.read_space()
    if space is None or not folder.best.exists():
        raise UserError(f"{study}: no candidate was trained yet; run the study first")
    task = TASKS[space["tasks"][0]["type"]].model_validate(space["tasks"][0])
    metrics = json.loads((folder.best / "metrics.json").read_text(encoding="utf-8"))
    origin = (
        f"{metrics['name']} of the study {record['name']}, trained {space['train']['steps']} steps "
        f"on {task.name}"
    )
    spec = load_spec(folder.best / "spec.yaml")
    return Source(spec, task.vocab_size, folder.best / "model.safetensors", origin)


def _untrained(path: Path) -> Source:
    return Source(load_spec(path), 256, None, f"{path.name}, untrained")


def _write(folder: Path, model: Model, chosen: Source) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    summary = chosen.spec.summary()
    texts = {"model.py": model_source(model.architecture, chosen.vocab, summary)}
    texts |= needed_files(model.architecture)
    home = Path(str(standalone.__file__)).parent
    texts |= {name: (home / name).read_text(encoding="utf-8") for name in COPIED}
    texts |= {f"{name}/__init__.py": f'"""{doc}"""\n' for name, doc in DOCSTRINGS.items()}
    texts["__init__.py"] = INIT.format(summary=summary, origin=chosen.origin)
    texts["README.md"] = README.format(
        name=folder.name, summary=summary, origin=chosen.origin, vocab=chosen.vocab
    )
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    weights = (folder / "model.safetensors").read_bytes()
    config = {
        "summary": summary,
        "origin": chosen.origin,
        "vocab": chosen.vocab,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "hash": chosen.spec.hash(),
        "archsearch": version("archsearch"),
        "torch": torch.__version__,
        "spec": chosen.spec.model_dump(mode="json"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _verify(folder: Path, model: Model) -> None:
    """Loads the package in a fresh process and compares logits bit for bit."""
    tokens = torch.arange(100)[None] % model.vocab
    with torch.no_grad():
        ours = digest(model(tokens)[0])
    probe = PROBE.format(
        home=str(folder.parent),
        name=folder.name,
        threads=torch.get_num_threads(),
        vocab=model.vocab,
    )
    command = [sys.executable, "-B", "-c", probe]  # -B leaves no __pycache__ in the package
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    theirs = run.stdout.strip()
    if run.returncode or theirs != ours:
        raise RuntimeError(f"the exported package differs: {ours} here, {theirs!r}\n{run.stderr}")


def digest(logits: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = bytes(logits.contiguous().view(torch.uint8).flatten().tolist())
    return hashlib.sha256(data).hexdigest()


PROBE = """
import hashlib, sys, torch
sys.path.insert(0, {home!r})
torch.set_num_threads({threads})
import {name}
with torch.no_grad():
    logits, _ = {name}.load()(torch.arange(100)[None] % {vocab})
data = bytes(logits.contiguous().view(torch.uint8).flatten().tolist())
print(hashlib.sha256(data).hexdigest())
"""

INIT = '''"""{summary}

From archsearch: {origin}. Needs PyTorch and nothing else.
"""

import json
from pathlib import Path

from .generation import generate
from .model import Model
from .weights import load_weights

HERE = Path(__file__).parent
config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))


def load() -> Model:
    """The model with its weights, in evaluation mode."""
    model = Model()
    model.load_state_dict(load_weights(HERE / "model.safetensors"))
    return model.eval()


__all__ = ["Model", "config", "generate", "load", "load_weights"]
'''

README = """# {name}

{summary}

{origin}.

The folder is a Python package that imports PyTorch and nothing else; `model.py` is the
architecture, line by line, over the files in `blocks/` and `kernels/`.

```python
import torch
import {name}

model = {name}.load()
tokens = torch.randint({vocab}, (1, 16))
logits, state = model(tokens)                 # (1, 16, {vocab})
logits, state = model(tokens[:, :1], state)   # goes on from the state
for token in {name}.generate(model, tokens, steps=20):
    print(token.item())
```

`python -m {name} "a prompt"` continues a prompt on the command line. The model trains like any
`nn.Module`; `config.json` holds its spec, which archsearch reads back.
"""
