"""The architecture as a package of its own: readable source, weights, config, README; torch alone.

my_model/  __init__.py  model.py  weights.py  check.py  __main__.py
           generation.py  prompting.py     of a model that predicts tokens
           blocks/  kernels/               the files used, as they are here
           model.safetensors  config.json
           check.safetensors               inputs, and what they gave here
           README.md  pyproject.toml       and what `card.papers` has
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from archsearch import card, standalone
from archsearch.model import Model
from archsearch.origin import Origin
from archsearch.source import model_source, needed_files

COPIED = ("weights.py", "check.py")
GENERATING = ("generation.py", "prompting.py", "__main__.py")
CHECKING = '"""python -m MODEL: is this copy whole?"""\n\nfrom .check import main\n\nmain()\n'
TORCH = ".".join(torch.__version__.split(".")[:2])
CHECKED = 32
"""Positions of the inputs that a copy is checked with, two sequences."""
DOCSTRINGS = {"blocks": "The blocks that this model uses.", "kernels": "The operators under them."}


def require(origin: Origin) -> None:
    """Every model has this form."""


def write(folder: Path, model: Model, origin: Origin) -> None:
    """All the files."""
    from safetensors.torch import save_file

    summary = origin.spec.summary()
    about = {"name": folder.name, "summary": summary, "origin": origin.told, "torch": TORCH}
    for name, text in (_code(model, origin) | _papers(origin, about)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        inputs = model.ends.inputs(2, CHECKED)
        outputs = model(inputs)[0]
    save_file({"inputs": inputs, "outputs": outputs}, folder / "check.safetensors")
    weights = (folder / "model.safetensors").read_bytes()
    config = {
        "summary": summary,
        "origin": origin.told,
        "reads": asdict(origin.ends.reads),
        "gives": {"type": type(origin.ends.gives).__name__, **asdict(origin.ends.gives)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "outputs_sha256": _digest(outputs),
        "hash": origin.spec.hash(),
        "archsearch": version("archsearch"),
        "torch": torch.__version__,
        "spec": origin.spec.model_dump(mode="json"),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _code(model: Model, origin: Origin) -> dict[str, str]:
    """What is imported, by its place in the package."""
    home = Path(str(standalone.__file__)).parent
    copied = (*COPIED, *GENERATING) if origin.ends.tied else COPIED
    texts = {"model.py": model_source(model.architecture, origin.ends, origin.spec.summary())}
    texts |= needed_files(model.architecture, origin.ends)
    texts |= {} if origin.ends.tied else {"__main__.py": CHECKING}
    texts |= {name: (home / name).read_text(encoding="utf-8") for name in copied}
    return texts | {f"{name}/__init__.py": f'"""{doc}"""\n' for name, doc in DOCSTRINGS.items()}


def _papers(origin: Origin, about: dict[str, str]) -> dict[str, str]:
    """What stands around the code, by its name."""
    return card.papers(origin, about["name"]) | {
        "__init__.py": card.init(about, origin.ends),
        "README.md": card.readme(about, origin),
        "pyproject.toml": card.project(about),
    }


def verify(folder: Path, model: Model) -> None:
    """Lets the package check itself in a fresh process: what it gives is the same bit for bit."""
    probe = PROBE.format(home=str(folder.parent), name=folder.name, threads=torch.get_num_threads())
    command = [sys.executable, "-B", "-c", probe]  # -B leaves no __pycache__ in the package
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode or run.stdout.strip() != "the same bits":
        raise RuntimeError(f"the exported package differs: {run.stdout!r}\n{run.stderr}")


def _digest(logits: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = bytes(logits.contiguous().view(torch.uint8).flatten().tolist())
    return hashlib.sha256(data).hexdigest()


PROBE = """
import sys, torch
sys.path.insert(0, {home!r})
torch.set_num_threads({threads})
from {name}.check import check, config
found = check()
same = found["weights"] and found["digest"] == config["outputs_sha256"]
print("the same bits" if same else found)
"""
