"""The section of the race: what the seeds of the search say of the leaders, beside the noise floor.

See archsearch.racing for the model, the intervals and who is trained again.
"""

import math

from archsearch.racing import Noise
from archsearch.report.findings import Findings, Trial
from archsearch.report.page import escape, section, table


def race(findings: Findings) -> str:
    """The section; empty as long as nothing was trained on several seeds."""
    again = [t for t in findings.trained if len(t.losses) > 1]
    if not again:
        return ""
    head = ["", "runs", "loss", *(f"seed {seed}" for seed in findings.seeds), "above the best", ""]
    rows = [_row(trial, findings) for trial in again]
    note = (
        "Who led was trained again on further seeds of the search, split validation, until an "
        "interval parted it from the best or it had them all; baselines on all, before any "
        "leader. The loss is what its runs say of it on the first seed's data, seeds being alike "
        f"to all (least squares). {_floor(findings.noise)}"
    )
    return section("The race over seeds", table(head, rows), note)


def _floor(noise: Noise) -> str:
    """The noise floor, in words."""
    if noise.sigma is None:
        return "There is no noise floor yet: it takes two architectures with two seeds each."
    return (
        f"Noise floor: one run is off by a standard deviation of {noise.sigma:.3g} "
        f"({noise.freedom} degrees of freedom), so two architectures of the same worth differ by "
        f"{noise.sigma * math.sqrt(2):.3g} on one seed."
    )


def _row(trial: Trial, findings: Findings) -> list[str]:
    best, interval, told = findings.best, None, None
    if best is not None and trial is not best:
        looks = (findings.space.get("search") or {}).get("seeds") or 1
        interval = findings.noise.interval(trial.losses, best.losses, looks)
    if interval is not None:
        told = "worse" if interval[0] > 0 else "better" if interval[1] < 0 else "not told apart"
    runs = [*(("failed" if x is None else f"{x:.3f}") for x in trial.losses)]
    runs += ["–"] * (len(findings.seeds) - len(runs))
    return [
        escape(trial.name),
        str(len(trial.losses)),
        f"{trial.loss:.3f}",
        *runs,
        "–" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        told or "",
    ]
