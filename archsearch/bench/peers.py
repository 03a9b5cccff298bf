"""Who else computes an operator, and how each is called.

A peer gets its arguments in its own layout, made outside the timed region, and its best mode. One
that is not installed is named with the command that installs it; none is dropped in silence.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from archsearch.bench import peers_cuda, peers_torch
from archsearch.bench.adapter import Adapter

BOTH = ("cpu", "cuda")


@dataclass(frozen=True)
class Peer:
    """A contestant.

    Attributes:
        name: as in the table.
        load: imports it; gives its adapters by operator name. Called once.
        package: the distribution its version is read from.
        install: how to get it, after "pip install".
        devices: the types of device it runs on.
    """

    name: str
    load: Callable[[], dict[str, Adapter]]
    package: str = "torch"
    install: str = ""
    devices: tuple[str, ...] = BOTH

    def version(self) -> str | None:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


OURS = Peer("archsearch", peers_torch.ours, "archsearch")

PEERS = [
    Peer("python loop", peers_torch.loop, "archsearch"),
    Peer("archsearch, scalar decay", peers_torch.scalar_decay, "archsearch"),
    Peer("torch causal SDPA", peers_torch.attention),
    Peer("torch F.conv1d", peers_torch.conv1d),
    Peer("torch F.conv1d, (B, T, D)", peers_torch.conv1d_transposed),
    Peer("fla naive loop", peers_torch.fla_naive_loop, "fla-core", "flash-linear-attention"),
    Peer("fla naive chunk", peers_torch.fla_naive_chunk, "fla-core", "flash-linear-attention"),
    Peer("mambapy pscan", peers_torch.mambapy, "mambapy", "mambapy"),
    Peer("transformers slow", peers_torch.transformers, "transformers", "transformers"),
    *(
        Peer(
            f"torchscale chunkwise {chunk}", peers_torch.torchscale(chunk), "torchscale",
            "--no-deps torchscale",
        )
        for chunk in (64, 128)
    ),
    Peer("archsearch, Triton", peers_torch.triton, "archsearch", devices=("cuda",)),
    Peer("fla chunk", peers_cuda.fla_chunk, "fla-core", "flash-linear-attention", ("cuda",)),
    Peer("fla fused_chunk", peers_cuda.fla_fused, "fla-core", "flash-linear-attention", ("cuda",)),
    Peer("mamba_ssm scan", peers_cuda.mamba_scan, "mamba-ssm", "mamba-ssm", ("cuda",)),
    Peer("mamba_ssm SSD", peers_cuda.mamba_ssd, "mamba-ssm", "mamba-ssm", ("cuda",)),
    Peer("causal_conv1d", peers_cuda.causal_conv1d, "causal-conv1d", "causal-conv1d", ("cuda",)),
]  # fmt: skip


@dataclass(frozen=True)
class Entrant:
    """A peer as it was found on this machine: its adapters, or why there are none."""

    peer: Peer
    adapters: dict[str, Adapter]
    status: str  # "ready", or what is in the way


def find(peer: Peer, device: str) -> Entrant:
    """Import a peer, if it is there and runs on this type of device."""
    if device not in peer.devices:
        return Entrant(peer, {}, f"needs {' or '.join(peer.devices)}")
    if peer.version() is None and peer.install:
        return Entrant(peer, {}, f"not installed: pip install {peer.install}")
    try:
        with warnings.catch_warnings(action="ignore"):  # about platforms and versions, not for us
            return Entrant(peer, peer.load(), "ready")
    except Exception as error:  # a broken installation raises anything at all
        return Entrant(peer, {}, f"cannot be imported: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """The first line of an error with its type; the rest is for a debugger."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
