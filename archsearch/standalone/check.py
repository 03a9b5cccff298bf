"""Is this copy whole, and does it compute here what it computed where it was made?

    python -m MODEL

weights     SHA-256 of model.safetensors, as config.json has it
outputs     of the inputs in check.safetensors, beside what they gave when this was exported: the
            same bits where torch, the processor and the threads are the same, else to rounding
streaming   the same inputs one position at a time, each from the state of the one before
"""

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import HERE, config, load
from .weights import load_weights

TOLERANCE = 1e-3
"""Of the largest output: far above float32's rounding through a model, far below a wrong weight."""


@torch.no_grad()
def check() -> dict[str, Any]:
    """Damage and differences: "weights", "outputs" and, of a model that streams, "streaming".

    Returns:
        weights: whether the file is the one that was exported.
        outputs, streaming: largest differences, as shares of the largest output.
        digest: SHA-256 of the outputs' bytes.
        state_bytes: what streaming carries after one sequence.
    """
    model, kept = load(), load_weights(HERE / "check.safetensors")
    inputs, expected = kept["inputs"], kept["outputs"]
    outputs, state = model(inputs)
    found: dict[str, Any] = {
        "weights": _digest(HERE / "model.safetensors") == config["weights_sha256"],
        "outputs": _apart(outputs, expected),
        "digest": hashlib.sha256(_bytes(outputs)).hexdigest(),
    }
    if state is not None:
        steps, state = [], None
        for t in range(inputs.shape[1]):
            step, state = model(inputs[:, t : t + 1], state)
            steps.append(step)
        at_each = config["gives"]["type"] in ("NextToken", "Tags")
        streamed = torch.cat(steps, dim=1) if at_each else steps[-1]
        found["streaming"] = _apart(streamed, outputs)
        found["state_bytes"] = _size(model(inputs[:1])[1])
    return found


def main() -> None:
    """Prints what was found; exits with 1 if something is wrong."""
    found = check()
    same = found["digest"] == config["outputs_sha256"]
    wrong = [name for name in ("outputs", "streaming") if not found.get(name, 0.0) < TOLERANCE]
    wrong += [] if found["weights"] else ["weights"]
    weights = "as exported" if found["weights"] else "not those that were exported"
    told = "the same bits as" if same else f"within {found['outputs']:.1e} of those"
    print(f"{config['summary']}, {config['parameters']} parameters")
    print(f"weights    {weights}")
    print(f"outputs    {told} where it was exported, by torch {config['torch']}")
    print(f"           {found['digest']}")
    if "streaming" in found:
        print(f"streaming  within {found['streaming']:.1e} of all at once, ", end="")
        print(f"{found['state_bytes']} bytes of state")
    if wrong:
        sys.exit(f"this copy is not what was exported: {', '.join(wrong)}")


def _apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return torch.inf
    return ((one - other).abs().max() / other.abs().max().clamp_min(1e-30)).item()


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _size(state: Any) -> int:
    if isinstance(state, tuple):
        return sum(map(_size, state))
    return state.nbytes if isinstance(state, Tensor) else 0
