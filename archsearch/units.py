"""Costs as a reader wants them: `3.23 k`, `512 KiB`, `12.5 ms`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """A cost by its name in metrics.json, and how it is shown: its title and its units."""

    name: str
    title: str
    base: int
    units: tuple[str, ...]
    one: float = 1
    """What one of the first unit is in metrics.json: times are in seconds there."""

    def power(self, value: float) -> int:
        """Which of the units suits a value."""
        units = range(len(self.units))
        fitting = (i for i in units if value / self.one < self.base ** (i + 1))
        return next(fitting, len(self.units) - 1)

    def tell(self, value: float | None) -> str:
        """In human units, three digits: `3.23 k`, `512 KiB`."""
        if value is None:
            return "–"
        power = self.power(value)
        scaled = value / self.one / self.base**power
        digits = f"{scaled:.0f}" if power == 0 or scaled >= 100 else f"{scaled:#.3g}"
        return f"{digits} {self.units[power]}".strip()


COUNT, BYTES = ("", "k", "M", "G", "T", "P", "E"), ("B", "KiB", "MiB", "GiB", "TiB")
TIME = ("µs", "ms", "s")
SECONDS = Cost("", "", 1000, TIME, 1e-6)
COSTS = (
    Cost("flops_per_token", "FLOPs per token", 1000, COUNT),
    Cost("parameters", "parameters", 1000, COUNT),
    Cost("state", "state", 1024, BYTES),
)
MORE = (
    Cost("train_memory", "training memory", 1024, BYTES),
    Cost("train_flops", "training FLOPs per token", 1000, COUNT),
    Cost("decode_flops", "FLOPs per decoded token", 1000, COUNT),
    Cost("bytes_moved", "bytes moved", 1024, BYTES),
    Cost("decode_latency", "decode latency", 1000, TIME, 1e-6),
    Cost("train_time", "time per training step", 1000, TIME, 1e-6),
)
"""Shown where a space asks for them."""
