"""torch.compile and CUDA graphs for the step of a candidate: after how many steps do they pay?

    python studies/compiled/measure.py [--device cuda]

A step is forward, loss and backward, without the optimiser. `compiled` is torch.compile of the
model, `graph` torch.cuda.make_graphed_callables of it, on a GPU only. Seconds before are those of
the first compiled step, on an empty cache, or of the capture; they are saved again after as many
steps as the last column says, of one architecture: each candidate of a search is another. Times are
the least of ten, process time on a CPU of one thread, in one process; losses are compared first.
"""

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from archsearch import reference
from archsearch.model import build
from archsearch.tasks import TASKS
from archsearch.tasks.task import stream

DESIGNS = ("transformer", "retnet", "gla", "mamba")
SIZES = ((64, 16), (128, 32))  # dim, batch


class Whole(nn.Module):
    """A model without the state, which training has no use for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def least(step: Callable[[], float], device: str) -> float:
    times = []
    for _ in range(12):
        began = clock(device)
        step()
        times.append(clock(device) - began)
    return min(times[2:])


def measure(design: str, dim: int, batch: int, device: str) -> None:
    """A line of the table for every way."""
    task = TASKS["in_context_recall"].model_validate({"type": "in_context_recall", "batch": batch})
    torch.manual_seed(0)
    model = Whole(build(reference(design, dim=dim, layers=2), task.ends)).to(device)
    x, y = (t.to(device) for t in task.sample(batch, stream("train", 0)))

    def stepping(forward: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        def step() -> float:
            model.zero_grad()
            loss = task.ends.loss(forward(x), y)
            loss.backward()
            return loss.item()

        return step

    eager = stepping(model)
    expected, plain = eager(), least(eager, device)
    line = f"| {design} | {dim} | {batch}"
    print(f"{line} | eager | {1e3 * plain:.1f} | | | |", flush=True)
    for name, way in ways(model, x, device).items():
        began = time.perf_counter()
        step = stepping(way())
        found = step()
        before = time.perf_counter() - began
        assert abs(found - expected) < 1e-3 * expected, f"{name}: {found}, eager {expected}"
        took = least(step, device)
        pays = f"{before / (plain - took):.0f}" if took < plain else "never"
        told = f"{1e3 * took:.1f} | {plain / took:.2f} | {before:.0f} | {pays}"
        print(f"{line} | {name} | {told} |", flush=True)


def ways(model: nn.Module, x: Tensor, device: str) -> dict[str, Callable[[], Callable]]:
    """What makes a forward, by name."""
    found: dict[str, Callable[[], Callable]] = {"compiled": lambda: torch.compile(model)}
    if device != "cpu":
        found["graph"] = lambda: torch.cuda.make_graphed_callables(model, (x,))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    where = torch.cuda.get_device_name() if given.device != "cpu" else platform.machine()
    print(f"# A step compiled\n\n{where}, torch {torch.__version__}, float32.\n")
    print("| design | dim | batch | way | ms | times as fast | s before | pays after steps |")
    print("|---|---|---|---|---|---|---|---|")
    for design in DESIGNS:
        for dim, batch in SIZES:
            torch.compiler.reset()
            with tempfile.TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                measure(design, dim, batch, given.device)


if __name__ == "__main__":
    main()
