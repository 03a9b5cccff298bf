"""The architecture as a folder that transformers loads: `archsearch export ... --format hf`.

my_model/  modeling.py  configuration.py   the wrapper: generate, beams, left padding, Trainer
           model.py                        the architecture, as in a package
           blocks_*.py  kernels_*.py       transformers takes files of one folder alone
           model.safetensors  config.json  generation_config.json
           tokenizer.json  tokenizer_config.json      where tokens are bytes
           architecture.yaml  training.json  README.md  LICENSE
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from archsearch import card, standalone
from archsearch.ends import Tokens
from archsearch.errors import UserError
from archsearch.model import Model
from archsearch.origin import Origin
from archsearch.source import model_source, needed_files
from archsearch.standalone.prompting import BYTES

WRAPPER = "modeling.py"
TRITON = re.compile(r"^import triton\b.*(?:\nimport triton\b.*)*", re.MULTILINE)


def require(origin: Origin) -> None:
    """UserError where the model is no causal language model, or transformers is missing."""
    if not (origin.ends.tied and origin.spec.causal):
        _, given = origin.ends.shapes
        sees = "" if origin.spec.causal else " and sees the future"
        raise UserError(
            f"{origin.told}, gives {given}{sees}; hf is for models that predict the next token. "
            "Leave --format out for a package of PyTorch"
        )
    if find_spec("transformers") is None:
        raise UserError(
            "hf needs transformers, which loads the folder before it is yours; pip install "
            "'archsearch[hf]', or leave --format out for a package of PyTorch"
        )


def write(folder: Path, model: Model, origin: Origin) -> None:
    """All the files."""
    from safetensors.torch import save_file

    reads, name = origin.ends.reads, folder.name
    assert isinstance(reads, Tokens)
    texts = card.papers(origin, name) | code(model, origin) | tokenizer(reads.vocab)
    texts["config.json"] = json.dumps(config(origin, reads.vocab), indent=1)
    texts["generation_config.json"] = json.dumps({"use_cache": True}, indent=1)
    texts["README.md"] = readme(name, origin, reads.vocab)
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    weights = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def verify(folder: Path, model: Model) -> None:
    """Has transformers load it in a fresh process: what it gives is the same bit for bit."""
    from safetensors.torch import save_file

    with torch.random.fork_rng(), torch.no_grad():
        inputs = model.ends.inputs(2, 32)
        kept = {"inputs": inputs, "outputs": model(inputs)[0]}
    with tempfile.TemporaryDirectory() as home:
        save_file(kept, Path(home) / "kept.safetensors")
        probe = PROBE.format(home=home, folder=str(folder), threads=torch.get_num_threads())
        environment = os.environ | {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-B", "-c", probe]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode or run.stdout.strip() != "the same bits":
        raise RuntimeError(f"the exported folder differs: {run.stdout!r}\n{run.stderr}")


PROBE = """
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads({threads})
kept = load_file({home!r} + "/kept.safetensors")
model = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)
with torch.no_grad():
    same = torch.equal(model(kept["inputs"]).logits, kept["outputs"])
print("the same bits" if same else "others")
"""


def readme(name: str, origin: Origin, vocab: int) -> str:
    """The model card."""
    text = vocab == BYTES
    return MODEL_CARD.format(
        name=name,
        summary=origin.spec.summary(),
        origin=origin.told,
        tokenizer=", AutoTokenizer" if text else "",
        example=(TEXT if text else IDS).format(name=name, vocab=vocab),
        costs="\n".join(card.costs(origin.spec, origin.ends)),
        training="\n".join(card.training(origin.training)),
        original=card.originals(origin.spec),
    )


def code(model: Model, origin: Origin) -> dict[str, str]:
    """What is imported, by its name, all in one folder."""
    files = {"model.py": model_source(model.architecture, origin.ends, origin.spec.summary())}
    files |= needed_files(model.architecture, origin.ends)
    wrapper = Path(str(standalone.__file__)).parent / WRAPPER
    files_flat = {WRAPPER: wrapper.read_text(encoding="utf-8")}
    return files_flat | {name.replace("/", "_"): flat(name, text) for name, text in files.items()}


def flat(name: str, text: str) -> str:
    """A file of a package, its imports as they are where folders have become parts of names.

    Transformers refuses a file that imports what is not installed, unless it tries to; ours import
    triton on a GPU only.
    """
    home = f"{name.partition('/')[0]}_" if "/" in name else ""
    text = re.sub(r"^(\s*from )\.\.(\w+)\.(\w+ import)", r"\1.\2_\3", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*from )\.(\w+)\.(\w+ import)", r"\1.\2_\3", text, flags=re.MULTILINE)
    if home:
        done = r"(?!blocks_|kernels_)"
        text = re.sub(
            rf"^(\s*from )\.{done}(\w+ import)", rf"\1.{home}\2", text, flags=re.MULTILINE
        )
    return TRITON.sub(_tried, text)


def _tried(found: re.Match[str]) -> str:
    lines = "".join(f"    {line}\n" for line in found[0].splitlines())
    return f"try:\n{lines}except ImportError:  # told as it is\n    raise"


def config(origin: Origin, vocab: int) -> dict[str, object]:
    """config.json: what transformers asks for, and the spec."""
    return {
        "architectures": ["ArchsearchForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling.ArchsearchConfig",
            "AutoModelForCausalLM": "modeling.ArchsearchForCausalLM",
        },
        "model_type": "archsearch",
        "vocab_size": vocab,
        "hidden_size": origin.spec.dim,
        "num_hidden_layers": origin.spec.layers,
        "dtype": "float32",
        "tie_word_embeddings": False,  # the head is the embedding's own tensor: nothing to tie
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "summary": origin.spec.summary(),
        "origin": origin.told,
        "hash": origin.spec.hash(),
        "spec": origin.spec.model_dump(mode="json"),
    }


def tokenizer(vocab: int) -> dict[str, str]:
    """tokenizer.json and its configuration, of bytes: token i is byte i. Empty of another."""
    if vocab != BYTES:
        return {}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": byte_characters(), "merges": []},
    }
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    about["padding_side"] = "left"
    return {
        "tokenizer.json": json.dumps(document, ensure_ascii=False, indent=1),
        "tokenizer_config.json": json.dumps(about, indent=1),
    }


def byte_characters() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (Radford et al. 2019)."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(BYTES + i): b for i, b in enumerate(others)}


MODEL_CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
tags: [archsearch]
---

# {name}

{summary}

{origin}.

```python
import torch
from transformers import AutoModelForCausalLM{tokenizer}

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
{example}
```

`trust_remote_code=True` runs the Python of this folder, as its architecture is none of
transformers' own: read `model.py`, and load no such folder from somebody whom you do not trust.
`generate` works with batches padded on the left, beams and sampling; `Trainer` trains it. What it
keeps of a text is the state of its blocks (`cache_params`), not transformers' cache of keys.

## What it costs

{costs}

## How it was trained

{training}

## Files

| | |
|---|---|
| `model.py` | the architecture, line by line |
| `blocks_*.py`, `kernels_*.py` | what it is made of, from archsearch |
| `modeling.py` | the wrapper for transformers |
| `architecture.yaml` | the spec, which archsearch reads back |
| `LICENSE` | of the code that is archsearch's: Apache 2.0 |
{original}"""

TEXT = """tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer(["import ", "def main"], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=20)))"""

IDS = """tokens = torch.randint({vocab}, (2, 16))
print(model.generate(tokens, max_new_tokens=20))"""
