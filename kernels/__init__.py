"""The operators every block is made of, each in one file: formula, reference, operator, function.

    scan             S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = scale S_t^T q_t
    delta_scan       S_t = exp(g_t) S_{t-1};  S_t += beta_t k_t (v_t - S_t^T k_t)^T
    selective_scan   h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t,  y_t = C_t h_t + D x_t
    causal_conv      y_t = bias + sum_i weight_{W-1-i} x_{t-i}
    long_conv        y_t = sum_{s<=t} kernel_{t-s} x_s

Importing this package imports nothing: a program started in the repository's root finds this folder
under the bare name `kernels`, which belongs to another library, and probing it must stay free of
charge and of side effects. The functions are loaded when first asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .causal_conv import causal_conv
    from .delta_scan import delta_scan
    from .long_conv import long_conv
    from .scan import scan
    from .selective_scan import selective_scan

__all__ = ["causal_conv", "delta_scan", "long_conv", "scan", "selective_scan"]


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Once a submodule is loaded, the import system binds it to its name in the package. A
        # function and its file share a name here, so without this `from archsearch.kernels import
        # scan` would give the function or the module, depending on who imported what before.
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f".{name}", __name__)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
