"""What a score is of, beside the machine: two scores under one key are of the same everything.

architecture             by its canonical hash, and the sources of the blocks and kernels in it
tasks                    by their fingerprints, which are of settings and data
training, seed, split    as they are
"""

import hashlib
import json
from collections.abc import Iterable

from archsearch.recipe import Training
from archsearch.source import source_text, used_sources
from archsearch.spec import ModelSpec
from archsearch.tasks.task import Split, Task


def score_key(
    spec: ModelSpec, tasks: Iterable[Task], training: Training, seed: int, split: Split
) -> str:
    """16 hex digits of SHA-256 over all that a score depends on."""
    content = {
        "architecture": spec.hash(),
        "sources": source_versions(spec),
        "tasks": {task.name: task.fingerprint() for task in tasks},
        "training": training.model_dump(mode="json"),
        "seed": seed,
        "split": split,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def source_versions(spec: ModelSpec) -> dict[str, str]:
    """The files of the blocks and kernels in a spec, `blocks/mamba.py`, each with its version.

    12 hex digits of the SHA-256 of its text. A file from elsewhere stands under its name alone.
    """
    return {name: _version(text) for name, text in used_sources(spec.graph()).items()}


def changed_sources(versions: dict[str, str]) -> list[str]:
    """The blocks and kernels of ours that have another version by now, or are gone."""
    ours = {name: version for name, version in versions.items() if "/" in name}
    return [n for n, v in ours.items() if (text := source_text(n)) is None or _version(text) != v]


def differences(there: dict[str, str], here: dict[str, str]) -> list[str]:
    """The files that have not the same version in both."""
    return sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))


def _version(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
