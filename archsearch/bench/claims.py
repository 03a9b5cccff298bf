"""What the CPU table is to show, judged on the run itself: forward and backward together."""

from collections.abc import Iterator
from dataclasses import dataclass

from archsearch.bench.record import TRAINING, Bench


@dataclass(frozen=True)
class Claim:
    """A peer takes at least `ratio` times as long as we do, in every case of an operator.

    Attributes:
        operator: its name, or the part before the dot.
        peer: the beginning of its name; of several the best counts in each case.
        ratio: the peer's time over ours.
        lengths: the T it is about; every one when None.
    """

    operator: str
    peer: str
    ratio: float
    lengths: range | None = None

    def __str__(self) -> str:
        if self.lengths is None:
            where = ""
        elif len(self.lengths) == 1:
            where = f" at T = {self.lengths[0]}"
        else:
            where = f" from T = {self.lengths[0]} on"
        return f"{self.operator}{where}: {self.peer} takes at least {self.ratio:.2g} x our time"


CLAIMS = [
    Claim("scan", "python loop", 20, range(512, 513)),
    Claim("scan", "fla naive loop", 20, range(512, 513)),
    Claim("scan.fixed", "torchscale", 1),
    Claim("scan.vector", "archsearch, scalar decay", 1 / 3.5),
    Claim("selective_scan", "mambapy", 5),
    Claim("selective_scan", "transformers", 20),
    Claim("causal_conv", "torch F.conv1d", 1),
    Claim("scan", "torch causal SDPA", 1, range(1024, 1 << 30)),
]


@dataclass(frozen=True)
class Verdict:
    """A claim, and the ratio it is reached with in each case that was measured."""

    claim: Claim
    reached: dict[str, float]

    @property
    def holds(self) -> bool:
        return min(self.reached.values()) >= self.claim.ratio


def verdicts(bench: Bench) -> list[Verdict]:
    """The claims that this run can judge."""
    found = (Verdict(claim, dict(_ratios(bench, claim))) for claim in CLAIMS)
    return [verdict for verdict in found if verdict.reached]


def _ratios(bench: Bench, claim: Claim) -> Iterator[tuple[str, float]]:
    for result in bench.results:
        if claim.operator not in (result.operator, result.operator.partition(".")[0]):
            continue
        if claim.lengths is not None and result.shape["T"] not in claim.lengths:
            continue
        ratios = [
            ratio
            for row in result.rows
            if row.name.startswith(claim.peer) and TRAINING in row.times
            if (ratio := bench.measure(result, row, TRAINING).times_ours) is not None
        ]
        if ratios:
            yield f"{result.operator} {result.sizes}", min(ratios)
