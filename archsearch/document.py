"""SpaceFile: the whole document of a study, section by section.

What stands under `shared`, `define` and `model` may hold decisions and is read by resolving.py;
everything else is said outright.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import pydantic

from archsearch.baselines import DESIGNS
from archsearch.budgets import Budgets
from archsearch.constraints import Constraint
from archsearch.tasks import TASKS
from archsearch.tasks.task import Task
from archsearch.training import Training
from archsearch.validation import Frozen, Positive

if TYPE_CHECKING:
    AnyTask = Task
else:
    _any = Union[tuple(TASKS.values())]  # noqa: UP007
    AnyTask = Annotated[_any, pydantic.Field(discriminator="type")]


class Search(Frozen):
    """How candidates are proposed, and how many are trained."""

    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    trials: Positive = pydantic.Field(
        default=20, description="candidates trained, baselines not counted"
    )


class Final(Frozen):
    """The best candidates and the baselines, trained again over fresh seeds and tested."""

    top: Positive = pydantic.Field(default=1, description="candidates taken")
    seeds: Positive = pydantic.Field(
        default=2, description="seeds for each, none used in the search"
    )


class SpaceFile(Frozen):
    """The whole document of a study."""

    archsearch: Literal[1]
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    blocks: Annotated[list[str], pydantic.Field(description="files of blocks of your own")] = []
    shared: dict[str, Any] = {}
    define: dict[str, Any] = {}
    model: dict[str, Any]
    constraints: list[Constraint] = []
    budgets: Budgets = Budgets()
    tasks: Annotated[list[AnyTask], pydantic.Field(min_length=1)]
    train: Training = Training()
    baselines: list[Literal[tuple(DESIGNS)]] = ["retnet", "mamba", "transformer"]  # type: ignore[valid-type]
    search: Search = Search()
    final: Final = Final()

    @property
    def vocab(self) -> int:
        """The largest vocabulary among the tasks: costs are counted with it."""
        return max(task.vocab_size for task in self.tasks)

    @pydantic.field_validator("tasks")
    @classmethod
    def _one_of_each(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks {names}: each type once, scores are kept by name")
        return tasks

    @pydantic.field_validator("constraints")
    @classmethod
    def _each_named_once(cls, constraints: list[Constraint]) -> list[Constraint]:
        names = [constraint.name for constraint in constraints]
        if len(set(names)) < len(names):
            raise ValueError(f"constraints {names}: each name once, rejections are counted by it")
        return constraints

    @pydantic.model_validator(mode="after")
    def _no_future(self) -> "SpaceFile":
        told = [task.name for task in self.tasks if task.causal]
        if self.model.get("causal", True) is not True and told:
            raise ValueError(
                f"model.causal is {self.model['causal']}, but a model that sees the future is told "
                f"the answers of {', '.join(told)}; drop `causal` or the tasks"
            )
        return self
