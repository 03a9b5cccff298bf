"""Several seeds of one architecture in one pass, by torch.func.vmap: does it pay?

    python studies/batched_seeds/measure.py [--device cuda] [--seeds 4]

A step is forward, loss and backward, without the optimiser, of `--seeds` models: one after the
other, and in one pass over stacked weights and batches. Operators of ours have no batching rule, so
torch calls them model by model; all else is one call. Times are the least of ten, process time on a
CPU of one thread, in one process; the losses of both ways are compared first.
"""

import argparse
import platform
import time
import warnings

import torch
from torch.func import functional_call, stack_module_state

from archsearch import reference
from archsearch.model import build
from archsearch.tasks import TASKS
from archsearch.tasks.task import stream

DESIGNS = ("transformer", "retnet", "gla", "mamba")
SIZES = ((16, 4), (32, 4), (64, 32))  # dim, batch


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def least(step: object, device: str) -> float:
    times = []
    for _ in range(12):
        began = clock(device)
        step()  # type: ignore[operator]
        times.append(clock(device) - began)
    return min(times[2:])


def measure(design: str, dim: int, batch: int, seeds: int, device: str) -> tuple[float, float]:
    """Seconds of a step of all models: one after the other, and in one pass."""
    options = {"type": "in_context_recall", "batch": batch}
    task = TASKS["in_context_recall"].model_validate(options)
    spec, models, drawn = reference(design, dim=dim, layers=2), [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        models.append(build(spec, task.ends).to(device))
        drawn.append([x.to(device) for x in task.sample(batch, stream("train", seed))])
    inputs, targets = (torch.stack(column) for column in zip(*drawn, strict=True))
    weights, buffers = stack_module_state(models)
    weights = {name: stack.detach().requires_grad_() for name, stack in weights.items()}

    def one_after_the_other() -> list[float]:
        losses = []
        for model, (x, y) in zip(models, drawn, strict=True):
            model.zero_grad()
            losses.append(task.ends.loss(model(x)[0], y))
            losses[-1].backward()
        return [loss.item() for loss in losses]

    def loss(weights: dict, buffers: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return task.ends.loss(functional_call(models[0], (weights, buffers), (x,))[0], y)

    def in_one_pass() -> list[float]:
        for stack in weights.values():
            stack.grad = None
        losses = torch.vmap(loss)(weights, buffers, inputs, targets)
        losses.sum().backward()
        return losses.tolist()

    pairs = zip(one_after_the_other(), in_one_pass(), strict=True)
    assert all(abs(a - b) < 1e-4 * abs(a) for a, b in pairs)
    return least(one_after_the_other, device), least(in_one_pass, device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    where = torch.cuda.get_device_name() if given.device != "cpu" else platform.machine()
    print(f"# {given.seeds} seeds in one pass\n\n{where}, torch {torch.__version__}, float32.\n")
    print("| design | dim | batch | ms one after the other | ms in one pass | times as fast |")
    print("|---|---|---|---|---|---|")
    for design in DESIGNS:
        for dim, batch in SIZES:
            apart, together = measure(design, dim, batch, given.seeds, given.device)
            told = f"{1e3 * apart:.0f} | {1e3 * together:.0f} | {apart / together:.2f}"
            print(f"| {design} | {dim} | {batch} | {told} |", flush=True)


if __name__ == "__main__":
    main()
