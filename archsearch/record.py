"""record.json: what ran where, with which seeds, and every proposal counted."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from archsearch.engines import Engine
from archsearch.folder import StudyFolder
from archsearch.jobs import Jobs
from archsearch.proposing import Proposer
from archsearch.racing import Race
from archsearch.storing import masked

UNTRAINED = ("pruned", "over_budget", "duplicate", "invalid", "failed")


class Record:
    """Of a study in progress: what does not change is found once."""

    def __init__(self, jobs: Jobs, engine: Engine) -> None:
        self.jobs, self.folder = jobs, jobs.folder
        self.environment = environment(engine.device) | {"engine": engine.describe()}
        self.times = _times(self.folder)

    def write(self, proposer: Proposer, race: Race, finished: datetime | None = None) -> None:
        """The study as it stands."""
        ledger, noise = proposer.ledger, race.noise
        self.folder.write_record(
            {
                "name": self.jobs.space.name,
                "seed": self.jobs.seed,
                "seeds": {"search": self.jobs.seeds, "final": self.jobs.fresh},
                **self.environment,
                **self.times,
                "trials": proposer.wanted,
                "finished": finished.isoformat(timespec="seconds") if finished else None,
                "exhausted": proposer.exhausted,
                "counts": ledger.counts(),
                "noise": {"sigma": noise.sigma, "freedom": noise.freedom},
                "tasks": {
                    task.name: {
                        "fingerprint": task.fingerprint(),
                        "unit": task.unit,
                        "floors": task.floors(),
                    }
                    for task in self.jobs.file.tasks
                },
                "untrained": [entry.brief() for entry in ledger.having(*UNTRAINED)],
            }
        )


def _times(folder: StudyFolder) -> dict[str, Any]:
    """When a study began, and when it went on."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if not folder.record.exists():
        return {"started": now, "resumed": []}
    past = folder.read_record()
    return {"started": past["started"], "resumed": [*past.get("resumed", []), now]}


def environment(device: str) -> dict[str, Any]:
    """What a result depends on beside the space: versions, commit, machine."""
    packages = ("torch", "optuna", "pydantic", "networkx", "torchmetrics", "numpy")
    return {
        "archsearch": version("archsearch"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": device,
            "accelerator": torch.cuda.get_device_name(device)
            if device.startswith("cuda") and torch.cuda.is_available()
            else None,  # a cluster's are with its nodes
        },
        "command": " ".join([Path(sys.argv[0]).name, *_shown(sys.argv[1:])]),
    }


def _shown(arguments: list[str]) -> list[str]:
    """Without a password in the URL of a storage."""
    before = ["", *arguments]
    told = []
    for last, argument in zip(before, arguments, strict=False):
        name, equals, value = argument.partition("=")
        if last == "--storage":
            argument = masked(argument)
        elif name == "--storage":
            argument = name + equals + masked(value)
        told.append(argument)
    return told


def commit() -> str | None:
    """The commit of the checkout that runs, None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
