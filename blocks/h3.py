"""H3, hungry hungry hippos (Fu et al. 2023): one state space shifts, the other remembers.

    q, k, v = W_q x, W_k x, W_v x
    S_t     = SSM_diag(SSM_shift(k)_t v_t^T)            per head, S in R^{d x d}, d = dim / heads
    y_t     = W_o (S_t^T q_t)

With heads of one channel, the default and the paper's, y = W_o (q * SSM_diag(SSM_shift(k) * v)).
SSM_shift keeps its last inputs as they are and reads them by learned weights: it is a causal
convolution, of as many taps as it has states. SSM_diag is S4D's, with its skip, one system a head.

Birth: S4D's (lin), W and the shift's weights as linear layers and short convolutions elsewhere. The
paper has 64 shift states; here it is the 4 taps that short convolutions settled on since, of the 8
that their kernels take.
"""

from typing import Any, Literal

from torch import Tensor, nn

from .block import Mixer, State, null_if, require_divisor
from .s4d import DiagonalSSM, Discretisation
from .short_conv import ShortConv


class H3(Mixer, name="h3"):
    """Shift and diagonal state spaces with products between (Fu et al. 2023, section 3).

    State: (h (B, d, d, H, N) float32, the shift's last inputs (B, D, shift - 1)).

    Args:
        heads: number of heads; null is one for every channel. d = dim / heads channels a head take
            d times the model width in memory.
        state: state size N of the diagonal systems, even.
        shift: state size of the shift system, the tokens it sees; 8 at most.
        discretisation: of the diagonal systems, zero-order hold or bilinear.
        step: a learned step for every head, or one for the layer.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        state: int = 64,
        shift: int = 4,
        discretisation: Discretisation = "zoh",
        step: Literal["channel", "layer"] = "channel",
    ) -> None:
        super().__init__()
        heads = dim if heads is None else heads
        require_divisor("h3", "heads", heads, dim, "dim")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.shift = ShortConv(dim, width=shift)
        self.ssm = DiagonalSSM(
            "h3", heads, state=state, init="lin", step=step, discretisation=discretisation
        )
        self.out = nn.Linear(dim, dim, bias=False)

    @classmethod
    def canonical(cls, options: dict[str, Any], *sizes: int) -> dict[str, Any]:
        (dim,), heads = sizes, options["heads"]
        if heads == 1 or (heads is None and dim == 1):  # a step for every head is one for the layer
            options = options | {"step": "channel"}
        return options | {"heads": null_if(heads, dim)}

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        h, window = state if state is not None else (None, None)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k, window = self.shift(k, window)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).movedim(-1, 1) for z in (q, k, v))
        written = k[:, :, None] * v[:, None]  # (B, d, d, T, H)
        S, h = self.ssm(written, h)
        o = (q[:, :, None] * S).sum(1)  # (B, d, T, H)
        return self.out(o.movedim(1, -1).flatten(-2)), (h, window)
