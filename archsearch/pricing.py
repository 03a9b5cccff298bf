"""What `archsearch cost` prints: the costs of one spec as a table with units, or as JSON."""

import json
from dataclasses import asdict, dataclass

from archsearch import measuring
from archsearch.costs import Cost, cost
from archsearch.ends import language
from archsearch.spec import ModelSpec
from archsearch.units import BYTES, TIME
from archsearch.units import Cost as Shown


@dataclass(frozen=True)
class Prices:
    """Traced costs, and times where they were measured."""

    cost: Cost
    times: dict[str, measuring.Time]

    def json(self) -> str:
        """Every number by name; times in seconds."""
        times = {name: asdict(time) for name, time in self.times.items()}
        return json.dumps(asdict(self.cost) | times, indent=2)

    def table(self) -> str:
        """A line for each cost, in human units."""
        c, m = self.cost, self.cost.memory
        head = f"batch {c.batch}, {c.seq_len} tokens each, float32"
        rows = [
            ("parameters", f"{c.parameters:,}"),
            ("  without embedding", f"{c.non_embedding_parameters:,}"),
            ("forward or prefill", _flops(c.forward_flops)),
            ("  per token", _flops(c.flops_per_token)),
            ("  bytes moved", _bytes(c.bytes_moved)),
            ("  intensity", f"{c.arithmetic_intensity:.3g} FLOP/B"),
            ("training step", _flops(c.train_flops)),
            ("  per token", _flops(c.train_flops_per_token)),
            ("decoding step", _flops(c.decode_flops)),
            ("  bytes moved", _bytes(c.decode_bytes_moved)),
            ("  intensity", f"{c.decode_intensity:.3g} FLOP/B"),
            ("state", _bytes(c.state_bytes)),
            ("training memory, peak", _bytes(c.train_memory)),
            ("  parameters", _bytes(m.parameters)),
            ("  gradients", _bytes(m.gradients)),
            ("  optimizer", _bytes(m.optimizer)),
            ("  activations", _bytes(m.activations)),
        ]
        for name, t in self.times.items():
            spread = f"{_time(t.median)}, half of all from {_time(t.lower)} to {_time(t.upper)}"
            rows.append((name.replace("_", " "), spread))
        return "\n".join([head, *(f"{name:<24}{value}" for name, value in rows)])


def price(spec: ModelSpec, batch: int, seq_len: int, vocab: int, device: str | None) -> Prices:
    """The costs of a spec, and on a device its times as well."""
    times: dict[str, measuring.Time] = {}
    ends = language(vocab)
    if device is not None:
        step = measuring.train_time(spec, ends, batch=batch, seq_len=seq_len, device=device)
        times["train_time"] = step
        token = measuring.decode_latency(spec, ends, context=seq_len, device=device)
        times |= {"decode_latency": token} if token is not None else {}
    return Prices(cost(spec, ends, batch=batch, seq_len=seq_len), times)


def _flops(value: float) -> str:
    return Shown("", "", 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP")).tell(value)


def _bytes(value: float) -> str:
    return Shown("", "", 1024, BYTES).tell(value)


def _time(value: float) -> str:
    return Shown("", "", 1000, TIME, 1e-6).tell(value)
