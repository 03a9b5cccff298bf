"""archsearch: declarative architecture search for hybrid sequence models.

    space = archsearch.load_space("spaces/fusion.yaml")
    result = archsearch.study(space, trials=20, out="studies/mine")
    model = archsearch.build(result.best, vocab=256)
    logits, state = model(tokens)

Names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archsearch.baselines import reference
    from archsearch.costs import Cost, cost
    from archsearch.loading import load_space, load_spec
    from archsearch.model import Model, build
    from archsearch.search import Result, study
    from archsearch.space import Space
    from archsearch.spec import ModelSpec
    from archsearch.tasks import Task, task

_HOME = {
    "reference": "baselines",
    "Cost": "costs",
    "cost": "costs",
    "Model": "model",
    "build": "model",
    "Result": "search",
    "study": "search",
    "Space": "space",
    "load_space": "loading",
    "ModelSpec": "spec",
    "load_spec": "loading",
    "Task": "tasks",
    "task": "tasks",
}

__all__ = [
    "Cost",
    "Model",
    "ModelSpec",
    "Result",
    "Space",
    "Task",
    "build",
    "cost",
    "load_space",
    "load_spec",
    "reference",
    "study",
    "task",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'archsearch' has no attribute {name!r}")
    return getattr(import_module(f"archsearch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
