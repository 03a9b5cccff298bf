"""SpaceFile: the whole document of a study, section by section.

What stands under `shared`, `define` and `model` may hold decisions and is read by resolving.py;
everything else is said outright.
"""

import functools
from typing import Annotated, Any, Literal, Union

import pydantic
from pydantic_core import core_schema

from archsearch.baselines import DESIGNS
from archsearch.budgets import Budgets
from archsearch.constraints import Constraint
from archsearch.curriculum import lessons
from archsearch.ends import Ends
from archsearch.recipe import Training
from archsearch.tasks import TASKS, Task
from archsearch.tasks.task import widest
from archsearch.validation import Frozen, Positive, told


class AnyTask:
    """Validates as a task, whichever there are then: files may bring more."""

    def models(self) -> list[type[Task]]:
        """The classes of all tasks."""
        return [TASKS[name] for name in sorted(TASKS)]

    def adapter(self) -> pydantic.TypeAdapter:
        """Pydantic's union of the tasks, told apart by `type`."""
        return _adapter(tuple(self.models()))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.with_info_plain_validator_function(
            lambda value, info: self.adapter().validate_python(value, context=info.context)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return handler(self.adapter().core_schema)


@functools.cache
def _adapter(models: tuple[type[Task], ...]) -> pydantic.TypeAdapter:
    tagged: Any = Annotated[Union[models], pydantic.Field(discriminator="type")]  # noqa: UP007
    return pydantic.TypeAdapter(tagged)


Sampler = Literal["evolution", "tpe", "nsga2", "gp", "random", "exhaustive"]

HALVING: tuple[Sampler, ...] = ("evolution", "random", "exhaustive")
"""Samplers that can do with candidates that wait behind a rung."""


class Search(Frozen):
    """How candidates are proposed, and how many are trained."""

    sampler: Annotated[
        Sampler,
        told("what is tried next: evolution on the decision tree, all draws, or as Optuna's says"),
    ] = "evolution"
    trials: Positive = pydantic.Field(
        default=20, description="candidates trained, baselines not counted"
    )
    eta: Annotated[
        Annotated[int, pydantic.Field(ge=2)] | None,
        told("successive halving: one in so many goes on behind each of train.rungs; null for all"),
    ] = 3
    seeds: Positive = pydantic.Field(
        default=1,
        description="leaders are trained again on up to so many, until an interval parts them",
    )


class Final(Frozen):
    """The best candidates and the baselines, trained again over fresh seeds and tested."""

    top: Positive = pydantic.Field(
        default=2, description="candidates taken; one alone has no rival to win over"
    )
    seeds: Positive = pydantic.Field(
        default=2, description="seeds for each, none used in the search"
    )


class SpaceFile(Frozen):
    """The whole document of a study."""

    archsearch: Annotated[Literal[1], told("version of the language")]
    name: Annotated[
        str,
        pydantic.Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="what the study is called by"
        ),
    ]
    seed: Annotated[int, pydantic.Field(ge=0, description="every other seed derives from it")] = 0
    blocks: Annotated[
        list[str], pydantic.Field(description="files of blocks and tasks of your own")
    ] = []
    shared: Annotated[dict[str, Any], told("decided once, the same wherever $name stands")] = {}
    define: Annotated[dict[str, Any], told("fragments, decided afresh wherever $name stands")] = {}
    model: Annotated[
        dict[str, Any], told("the architecture; in a space, any value may be a decision")
    ]
    constraints: Annotated[
        list[Constraint], told("rules that an architecture keeps, judged before it is built")
    ] = []
    budgets: Budgets = Budgets()
    tasks: Annotated[
        list[Annotated[Task, AnyTask()]],
        pydantic.Field(min_length=1, description="what candidates are trained and scored on"),
    ]
    objectives: Annotated[
        list[str],
        pydantic.Field(min_length=1),
        told("what is to be small: loss, and of the costs under budgets those named here"),
    ] = ["loss"]
    train: Training = Training()
    baselines: Annotated[
        list[Literal[tuple(DESIGNS)]],  # type: ignore[valid-type]
        told("published designs, trained and tested like candidates"),
    ] = ["retnet", "mamba", "transformer"]
    search: Annotated[Search, pydantic.Field(validate_default=True)] = Search()
    final: Final = Final()

    @property
    def ends(self) -> Ends:
        """The largest ends among the tasks: costs are counted with them."""
        return widest(self.tasks)

    @pydantic.field_validator("tasks")
    @classmethod
    def _one_of_each(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks {names}: each type once, scores are kept by name")
        return tasks

    @pydantic.field_validator("objectives")
    @classmethod
    def _loss_and_costs(cls, names: list[str], info: pydantic.ValidationInfo) -> list[str]:
        costs = [*(info.data["budgets"].model_fields_set if "budgets" in info.data else ())]
        legal = ["loss", *sorted(costs)]
        for name in names:
            if name not in legal:
                raise ValueError(
                    f"objectives: {name!r} is none of {', '.join(legal)}; a cost is named under "
                    f"budgets, with its context, where max may be left out: {name}: {{}}"
                )
        if names[0] != "loss" or len({*names}) < len(names):
            raise ValueError(f"objectives {names}: the loss first, and each once")
        return names

    @pydantic.field_validator("train")
    @classmethod
    def _lessons(cls, train: Training, info: pydantic.ValidationInfo) -> Training:
        for task in info.data.get("tasks", []):
            lessons(train, task)
        return train

    @pydantic.field_validator("search")
    @classmethod
    def _halving(cls, search: Search, info: pydantic.ValidationInfo) -> Search:
        """Without `eta` where nobody could wait, unless it was asked for."""
        rungs = info.data["train"].pauses if "train" in info.data else []
        if search.eta is None or (rungs and search.sampler in HALVING):
            return search
        if "eta" not in search.model_fields_set:
            return search.model_copy(update={"eta": None})
        if not rungs:
            raise ValueError(
                f"eta is {search.eta}, but there is no rung before the end, behind "
                "which candidates could be left; add train.rungs, as [0.1, 0.3], or drop eta"
            )
        raise ValueError(
            f"eta is {search.eta}, but {search.sampler} learns only of "
            f"candidates that ended, and most wait; take {', '.join(HALVING)}, or drop eta"
        )

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
