"""What a study may claim of its best candidate: no louder than the final runs allow.

difference    d_i = loss of the one - loss of the other, on fresh seed i: both read the same data
interval      mean d -+ t(0.975, n - 1) s / sqrt(n)    over the n seeds that both have; 95 %
told apart    two whose interval does not hold 0

It is the winner when it is told apart from every other finalist and below all of them, the next
candidate of the search among them; else those that it is not told apart from are tied with it. Of
one seed in common there is no interval.
"""

import math
import statistics
from dataclasses import dataclass

from scipy.special import stdtrit

from archsearch.report.findings import Findings, Trial

BEATS, BELOW, SAME, ABOVE, BEATEN = RELATIONS = (
    "beats",
    "is below",
    "is not told apart at these seeds from",
    "is above",
    "is beaten by",
)


@dataclass(frozen=True)
class Difference:
    """Of two architectures' losses over the `n` fresh seeds that both have.

    Attributes:
        low, high: the interval of 95 %; None of fewer than two seeds.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


def difference(one: Trial, other: Trial) -> Difference | None:
    """Paired by seed; None where no seed is of both."""
    ours, theirs = ({run["seed"]: run["loss"] for run in trial.tests} for trial in (one, other))
    pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        return None
    mean, n = statistics.fmean(pairs), len(pairs)
    if n == 1:
        return Difference(n, mean, None, None)
    wide = float(stdtrit(n - 1, 0.975)) * statistics.stdev(pairs) / math.sqrt(n)
    return Difference(n, mean, mean - wide, mean + wide)


def relation(one: Trial, other: Trial) -> str:
    """How the losses of two relate."""
    found = difference(one, other)
    if found is None:
        return SAME
    if found.low is None or found.high is None:
        if max(one.finals) < min(other.finals):
            return BELOW
        return ABOVE if min(one.finals) > max(other.finals) else SAME
    if found.high < 0:
        return BEATS
    return BEATEN if found.low > 0 else SAME


def verdict(findings: Findings) -> str:
    """Whether the best candidate beats the other finalists."""
    best, baselines = findings.best, findings.baselines
    if best is None:
        return "No candidate has been trained yet."
    if not best.finals:
        return _unsettled(best, baselines) + _missing(findings)
    n = len(best.finals)
    seeds = "one fresh seed" if n == 1 else f"{n} fresh seeds"
    text = (
        f"Trained again on {seeds} and measured on the test split, which the search never saw, "
        f"{best.name} reaches a loss of {spread(best.finals)}."
    )
    rivals = [t for t in findings.finalists if t.finals and t is not best]
    groups = {kind: [t for t in rivals if relation(best, t) == kind] for kind in RELATIONS}
    for kind, group in groups.items():
        told = " and ".join(f"{t.name}, {spread(t.finals)}{_apart(best, t)}" for t in group)
        text += f" It {kind} {told}." if group else ""
    if any(len(t.finals) == 1 for t in (best, *rivals)):
        text += " One seed shows no spread: a difference seen on one seed may be luck."
    return text + _winner(best, groups, findings.candidates[1:]) + _missing(findings)


def _winner(best: Trial, groups: dict[str, list[Trial]], others: list[Trial]) -> str:
    """Who won, if anybody did; `others` are the candidates behind the best, in their order."""
    tied, better = groups[SAME], [t.name for t in groups[BEATEN]]
    if better:
        return (
            f" Chosen on validation, {best.name} is not the best here: {' and '.join(better)} is."
        )
    if tied:
        names = ", ".join(sorted([best.name, *(t.name for t in tied)]))
        return f" No winner: a tied set of {len(tied) + 1} ({names}); more final seeds may part it."
    if not groups[BEATS] or groups[BELOW] or groups[ABOVE]:
        return ""
    if others and not others[0].finals:
        return (
            f" No winner: {others[0].name}, the next in the search ({others[0].loss:.3f} after "
            f"{best.loss:.3f}), has no final runs to tell the two apart."
        )
    return " It is the winner."


def _apart(one: Trial, other: Trial) -> str:
    """By how much, where there is an interval."""
    found = difference(one, other)
    if found is None or found.low is None or found.high is None:
        return ""
    return f" (by {-found.mean:.3f}, {-found.high:.3f} to {-found.low:.3f})"


def spread(losses: list[float]) -> str:
    """Mean and range: `1.960 (1.950 to 1.970)`."""
    mean = sum(losses) / len(losses)
    if len(losses) == 1:
        return f"{mean:.3f} (one seed)"
    return f"{mean:.3f} ({min(losses):.3f} to {max(losses):.3f})"


def _unsettled(best: Trial, baselines: list[Trial]) -> str:
    others = ", ".join(f"{b.name} {b.loss:.3f}" for b in baselines)
    return (
        f"{best.name} leads the candidates with a validation loss of {best.loss:.3f} "
        f"(baselines: {others or 'none trained'}). These are validation losses, by which "
        f"it was chosen: {best.name} has no final runs yet."
    )


def _missing(findings: Findings) -> str:
    """What no verdict was reached on: a baseline left out is not a baseline beaten."""
    settled = findings.best is not None and findings.best.finals
    waiting = [b.name for b in findings.baselines if settled and not b.finals]
    gone = [(t.name, t.state) for t in findings.trials if t.kind == "baseline" and t.loss is None]
    for entry in findings.untrained:
        if entry.get("kind") == "baseline":
            gone.append((entry["name"], entry["state"].replace("_", " ")))
    failed = [f"{t.name} {t.failed_finals}" for t in findings.trials if t.failed_finals]
    told = {
        "Without a final run": waiting,
        "Not trained": [f"{name} ({state})" for name, state in gone],
        "Final runs that failed": failed,
    }
    return "".join(f" {what}: {', '.join(names)}." for what, names in told.items() if names)
