"""What a run found, and what follows from it: rates, ratios, JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from archsearch.bench.cases import Costs
from archsearch.bench.peers import OURS, Entrant
from archsearch.bench.timing import Timing

FORWARD, TRAINING = "forward", "training"  # without gradients; forward and backward
TIMED = "timed"


@dataclass(frozen=True)
class Measure:
    """One contestant in one mode.

    Attributes:
        ms: the median, and between low and high the middle three fifths of the rounds.
        gb_per_s: the least traffic of the work over the time; 1e9 bytes.
        gflop_per_s: the operator's FLOPs over the time; None for who does other work.
        times_floor: time over that of the least traffic at the bandwidth of a copy.
        times_ours: time over ours, the median of the rounds; None when ours is not timed.
    """

    ms: float
    low: float
    high: float
    rounds: int
    gb_per_s: float
    gflop_per_s: float | None
    times_floor: float
    times_ours: float | None


@dataclass
class Row:
    """One contestant in one case; `times` is empty unless its status is "timed"."""

    name: str
    status: str
    error: float | None = None
    where: str = ""
    times: dict[str, Timing] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    same_work: bool = True


@dataclass
class Result:
    """One case: an operator at a shape, and its contestants, ours first."""

    operator: str
    shape: dict[str, int]
    costs: Costs
    rows: list[Row]

    @property
    def sizes(self) -> str:
        """B 4, T 512, H 4, K 64."""
        return ", ".join(f"{letter} {size}" for letter, size in self.shape.items())


@dataclass
class Bench:
    """A run: where and how it is measured, who takes part, and the results so far."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    bandwidth: float  # bytes a second, of a large copy in this run
    entrants: list[Entrant]
    results: list[Result] = field(default_factory=list)

    def measure(self, result: Result, row: Row, mode: str) -> Measure:
        """What follows from a contestant's time in one mode."""
        timing, costs = row.times[mode], result.costs
        forward = mode.startswith(FORWARD)
        traffic = costs.forward_bytes if forward else costs.training_bytes
        flops = costs.forward_flops if forward else costs.training_flops
        ours = next((r for r in result.rows if r.name == OURS.name), row).times.get(mode)
        return Measure(
            ms=timing.median,
            low=timing.quintiles[0],
            high=timing.quintiles[1],
            rounds=len(timing.samples),
            gb_per_s=traffic / timing.median / 1e6,
            gflop_per_s=flops / timing.median / 1e6 if row.same_work else None,
            times_floor=timing.median / self.floor(traffic),
            times_ours=timing.times(ours) if ours else None,
        )

    def floor(self, traffic: int) -> float:
        """Milliseconds that moving so many bytes takes at the bandwidth of a copy."""
        return traffic / self.bandwidth * 1e3

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {
            "settings": self.settings,
            "machine": self.machine,
            "versions": self.versions,
            "copy_bandwidth_gb_per_s": self.bandwidth / 1e9,
            "peers": [
                {"name": e.peer.name, "version": e.peer.version(), "status": e.status}
                for e in self.entrants
            ],
            "cases": [self._case(result) for result in self.results],
        }

    def _case(self, result: Result) -> dict[str, Any]:
        traffic = result.costs.forward_bytes, result.costs.training_bytes
        floors = dict(zip((FORWARD, TRAINING), map(self.floor, traffic), strict=True))
        return {
            "operator": result.operator,
            "shape": result.shape,
            "costs": asdict(result.costs),
            "floor_ms": floors,
            "contestants": [
                {
                    "name": row.name,
                    "status": row.status,
                    "error": row.error,
                    "error_in": row.where,
                    "notes": row.notes,
                    "times": {mode: asdict(self.measure(result, row, mode)) for mode in row.times},
                }
                for row in result.rows
            ],
        }
