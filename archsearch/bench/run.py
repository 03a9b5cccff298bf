"""The benchmark: every operator, every shape, every contestant, checked and then timed."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from archsearch.bench import checks, timing
from archsearch.bench.adapter import Adapter
from archsearch.bench.cases import OPERATORS, Operator, Shape, Tensors, costs
from archsearch.bench.peers import OURS, PEERS, Peer, find, one_line
from archsearch.bench.record import FORWARD, TIMED, TRAINING, Bench, Result, Row
from archsearch.errors import UserError
from archsearch.preflight import require_device
from archsearch.reading import nearest
from archsearch.record import commit

LONGEST_GRAPH = 100  # milliseconds
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in checks.TOLERANCE}


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        device: "cpu", "cuda", "cuda:1"; None for the GPU if there is one.
        dtype: None for bfloat16 on a GPU and float32 on a CPU.
        threads: of PyTorch on the CPU.
        rounds: turns that every contestant has.
        seconds: after which a contestant takes no further turn, per measurement.
    """

    device: str | None = None
    dtype: str | None = None
    threads: int = 1
    rounds: int = timing.ROUNDS
    seconds: float = 4.0


class Runner:
    """Runs it: `bench` is known at once, `results()` yields as they come.

    Args:
        settings: how it is measured.
        only: operators, or operators with their kind ("scan", "scan.vector"); all when empty.
        shapes: instead of each operator's own.
        peers: who takes part beside ours.

    Raises:
        UserError: an option is not as said above.
    """

    def __init__(
        self,
        settings: Settings,
        only: Sequence[str] = (),
        shapes: Sequence[Shape] | None = None,
        peers: Sequence[Peer] = PEERS,
    ) -> None:
        self.settings, self.shapes = settings, shapes
        self.operators = _chosen(only)
        self.device = _device(settings.device)
        self.dtype = _dtype(settings.dtype, self.device)
        if settings.threads < 1:
            raise UserError(f"threads must be at least 1; got {settings.threads}")
        self.stopwatch = timing.stopwatch_for(self.device, settings.threads)
        with _threads(settings.threads):
            self.bench = Bench(
                settings=self._settings(),
                machine=machine(self.device),
                versions={name: version(name) for name in ("archsearch", "torch", "numpy")}
                | {"python": platform.python_version()},
                bandwidth=timing.copy_bandwidth(self.device, self.stopwatch),
                entrants=[find(peer, self.device.type) for peer in (OURS, *peers)],
            )

    def results(self) -> Iterator[Result]:
        """One result after another; each is in `bench.results` when it comes."""
        for operator in self.operators:
            for shape in self.shapes or operator.shapes[self.device.type]:
                with _threads(self.settings.threads):
                    result = self._result(operator, shape)
                self.bench.results.append(result)
                yield result

    def _settings(self) -> dict[str, Any]:
        return asdict(self.settings) | {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "clock": timing.clock_of(self.device, self.settings.threads),
            "tolerance": checks.tolerance(self.dtype, self.device),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "date": date.today().isoformat(),
            "commit": commit(),
        }

    def _result(self, operator: Operator, shape: Shape) -> Result:
        inputs = operator.inputs(shape, self.dtype, self.device)
        adapters = {
            entrant.peer.name: entrant.adapters[operator.name]
            for entrant in self.bench.entrants
            if operator.name in entrant.adapters
        }
        judge = Judge(operator, inputs, self.dtype)
        rows = [judge(name, adapter) for name, adapter in adapters.items()]
        del judge  # and with it what float64 takes
        calls = dict(_callable(rows, adapters, inputs))
        ready = {row.name: row for row in rows if row.name in calls}
        for mode in (FORWARD, TRAINING):
            of_mode = {name: both[mode] for name, both in calls.items()}
            self._measure(mode, of_mode, ready)
            if self.device.type == "cuda":
                self._measure(f"{mode} graph", _graphs(of_mode, mode, ready), ready)
        sizes = dict(zip(operator.letters, shape, strict=True))
        return Result(operator.name, sizes, costs(operator, inputs), rows)

    def _measure(self, mode: str, calls: Mapping[str, timing.Call], rows: dict[str, Row]) -> None:
        if not calls:
            return
        rounds, seconds = self.settings.rounds, self.settings.seconds
        measured = timing.side_by_side(calls, self.stopwatch, rounds, seconds)
        for name, timed in measured.items():
            rows[name].times[mode] = timed


class Judge:
    """Checks a contestant's values and gradients; one truth serves all who compute the same."""

    def __init__(self, operator: Operator, inputs: Tensors, dtype: torch.dtype) -> None:
        self.operator, self.inputs, self.dtype = operator, inputs, dtype
        self.tolerance = checks.tolerance(dtype, next(iter(inputs.values())).device)
        self.exact = checks.doubled(inputs)
        self.truths: dict[tuple[object, object], Tensors] = {}

    def __call__(self, name: str, adapter: Adapter) -> Row:
        try:
            want = self._truth_for(adapter)
        except Exception as problem:  # it does not fit the memory, say
            return Row(name, f"unchecked: there is no float64 truth: {one_line(problem)}")
        try:
            if reason := adapter.refuse(self.inputs):
                return Row(name, f"cannot: {reason}")
            got = checks.evaluate(adapter.output, self.inputs, self.dtype)
            error, where = checks.largest_error(got, want)
        except Exception as problem:  # a peer may raise anything at all; it is reported
            return Row(name, f"failed: {one_line(problem)}")
        if error <= self.tolerance:
            return Row(name, TIMED, error, where, same_work=adapter.truth is None)
        return Row(name, f"wrong: error {error:.1e} in the {where}", error, where)

    def _truth_for(self, adapter: Adapter) -> Tensors:
        truth, compare = adapter.truth or self.operator.reference, adapter.compare
        if (truth, compare) not in self.truths:
            self.truths[truth, compare] = checks.evaluate(
                lambda t: compare(truth(t)), self.exact, self.dtype
            )
        return self.truths[truth, compare]


def _callable(
    rows: list[Row], adapters: dict[str, Adapter], inputs: Tensors
) -> Iterator[tuple[str, dict[str, timing.Call]]]:
    """The calls of those who passed the check."""
    for row in rows:
        if row.status == TIMED:
            try:
                yield row.name, _calls(adapters[row.name], inputs)
            except Exception as error:
                row.status = f"failed: {one_line(error)}"


def _calls(adapter: Adapter, inputs: Tensors) -> dict[str, timing.Call]:
    """What is timed: the call alone, on arguments of its own layout that are leaves."""
    arguments = {
        name: x.detach()
        .clone(memory_format=torch.contiguous_format)
        .requires_grad_(x.requires_grad)
        for name, x in adapter.arrange(inputs).items()
    }
    leaves = [x for x in arguments.values() if x.requires_grad]
    with torch.no_grad():
        gradient = torch.randn_like(adapter.call(arguments))

    def forward() -> Tensor:
        with torch.no_grad():
            return adapter.call(arguments)

    def training() -> Sequence[Tensor]:
        return torch.autograd.grad(adapter.call(arguments), leaves, gradient, allow_unused=True)

    return {FORWARD: forward, TRAINING: training}


def _graphs(
    calls: Mapping[str, timing.Call], mode: str, rows: dict[str, Row]
) -> dict[str, timing.Call]:
    """CUDA graphs of those that launching may hold up; a long loop would fill the memory."""
    graphs = {}
    for name, call in calls.items():
        if rows[name].times[mode].median > LONGEST_GRAPH:
            rows[name].notes.append(f"{mode}: too long to gain from a CUDA graph")
            continue
        try:
            graphs[name] = timing.captured(call)
        except Exception as error:  # synchronising inside is legal, and then there is no graph
            torch.cuda.synchronize()
            rows[name].notes.append(f"{mode}: no CUDA graph: {one_line(error)}")
    return graphs


def _chosen(only: Sequence[str]) -> list[Operator]:
    families = {name.partition(".")[0] for name in OPERATORS}
    for name in only:
        if name not in OPERATORS and name not in families:
            raise UserError(
                f"--only {name}: no such operator; {nearest(name, families | {*OPERATORS})}"
            )
    return [
        operator
        for name, operator in OPERATORS.items()
        if not only or name in only or name.partition(".")[0] in only
    ]


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    require_device(name)
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name}: shapes and clocks are there for cpu and cuda")
    if device.type == "cuda":  # events and graphs are the current device's
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    name = name or ("bfloat16" if device.type == "cuda" else "float32")
    if name not in DTYPES:
        raise UserError(f"dtype {name}: {nearest(name, DTYPES)}")
    return DTYPES[name]


def machine(device: torch.device) -> dict[str, Any]:
    """What is measured on, and how busy it is."""
    capability = torch.backends.cpu.get_cpu_capability()
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    is_gpu = device.type == "cuda"
    return {
        "cpu": f"{os.cpu_count()} {platform.machine()} cores, {capability}, {amx}",
        "load": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name(device) if is_gpu else None,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
