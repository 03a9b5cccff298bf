"""Space: a YAML document in which any value of the model may be a decision.

Resolving a space with a chooser, which answers each decision by its path, gives a ModelSpec. The
path of a decision is where it stands in the resolved model, with the names of the alternatives
chosen on the way (`topology/parallel/branches/0/retention/decay/selective/per`); a shared decision
is `shared/<name>`. It is the decision's name in Optuna.
"""

import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import pydantic
import torch

from archsearch import domains, plugins, reading, validation
from archsearch.baselines import DESIGNS
from archsearch.blocks import ChannelMixer, Mixer
from archsearch.budgets import Budgets
from archsearch.catalogue import PartSpec, classes, factory
from archsearch.domains import Choice, Finite, Value
from archsearch.errors import Place, Problem, SpecError
from archsearch.reading import Document, Key, show_path
from archsearch.spec import ModelSpec
from archsearch.tasks import TASKS
from archsearch.tasks.task import Task
from archsearch.topologies import Division
from archsearch.training import Training
from archsearch.validation import Finding, Frozen, Positive

if TYPE_CHECKING:
    AnyTask = Task
else:
    _any = Union[tuple(TASKS.values())]  # noqa: UP007
    AnyTask = Annotated[_any, pydantic.Field(discriminator="type")]

Chooser = Callable[[str, Finite], Value]


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
    budgets: Budgets = Budgets()
    tasks: Annotated[list[AnyTask], pydantic.Field(min_length=1)]
    train: Training = Training()
    baselines: list[Literal[tuple(DESIGNS)]] = ["retnet", "mamba", "transformer"]  # type: ignore[valid-type]
    search: Search = Search()
    final: Final = Final()

    @pydantic.field_validator("tasks")
    @classmethod
    def _one_of_each(cls, tasks: list[Task]) -> list[Task]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks {names}: each type once, scores are kept by name")
        return tasks

    @pydantic.model_validator(mode="after")
    def _no_future(self) -> "SpaceFile":
        told = [task.name for task in self.tasks if task.causal]
        if self.model.get("causal", True) is not True and told:
            raise ValueError(
                f"model.causal is {self.model['causal']}, but a model that sees the future is told "
                f"the answers of {', '.join(told)}; drop `causal` or the tasks"
            )
        return self


@dataclass(frozen=True)
class Draw:
    """One resolution: the model's data, where each part of it came from, what was decided."""

    data: dict[str, Any]
    sources: dict[Key, Key]  # path in the resolved model -> path in the file
    decisions: dict[str, Value]
    domains: dict[str, Finite]


class Space:
    """A legal search space. Load one with load_space."""

    def __init__(
        self, document: Document, file: SpaceFile, blocks: dict[str, plugins.BlockFile]
    ) -> None:
        self.document, self.file, self.blocks = document, file, blocks

    @property
    def name(self) -> str:
        return self.file.name

    def resolve(self, choose: Chooser) -> Draw:
        """Every decision answered by `choose`; the result may still be no legal spec."""
        return _Resolver(self.file, choose).run()

    def decide(self, choose: Chooser) -> ModelSpec:
        """The spec that a chooser draws; ValueError when the combination cannot be built."""
        draw = self.resolve(choose)
        findings = validation.find(ModelSpec, draw.data) or build_findings(
            ModelSpec.model_validate(draw.data)
        )
        if findings:
            raise SpecError([self._problem(draw, finding) for finding in findings])
        return ModelSpec.model_validate(draw.data)

    def sample(self, seed: int) -> ModelSpec:
        """A random spec, the same for the same seed; what cannot be built is redrawn."""
        rng = random.Random(seed)
        for _ in range(1000):
            with contextlib.suppress(SpecError):
                return self.decide(lambda _, domain: domain.draw(rng))
        return self.decide(lambda _, domain: domain.draw(rng))  # tells what is wrong

    def default(self) -> Draw:
        """The draw that takes the first alternative everywhere."""
        return self.resolve(lambda _, domain: domain.alternatives()[0])

    def covering_draws(self) -> Iterator[Draw]:
        """Draws that together take every alternative of every decision at least once."""
        seen: set[tuple[str, str]] = set()
        queue: list[dict[str, Value]] = [{}]
        while queue:
            fixed = queue.pop(0)
            draw = self.resolve(
                lambda name, domain, fixed=fixed: (
                    fixed[name] if name in fixed else domain.alternatives()[0]
                )
            )
            yield draw
            seen |= {(name, repr(value)) for name, value in draw.decisions.items()}
            for name, domain in draw.domains.items():
                for value in domain.alternatives():
                    if (name, repr(value)) not in seen:
                        seen.add((name, repr(value)))
                        queue.append({**draw.decisions, name: value})

    def check(self) -> None:
        """Tries every alternative; SpecError lists what can never be part of a legal model."""
        problems: dict[tuple[Place | None, str], Problem] = {}  # each place is told once

        def note(problem: Problem) -> None:
            problems.setdefault((problem.place, problem.message), problem)

        failed: dict[Key, list[Problem]] = defaultdict(list)
        built: set[Key] = set()
        for draw in self.covering_draws():
            findings = validation.find(ModelSpec, draw.data)
            for finding in findings:
                note(self._problem(draw, finding))
            if not findings:
                spec = ModelSpec.model_validate(draw.data)
                findings = build_findings(spec)
                for finding in findings:
                    failed[draw.sources[finding.path]].append(self._problem(draw, finding))
                wrong = {finding.path for finding in findings}
                built |= {draw.sources[p] for p in part_paths(draw.data) if p not in wrong}
        for source, found in failed.items():
            if source not in built:  # no draw at all can build what stands there
                note(found[0])
        if problems:
            raise SpecError(list(problems.values()))

    def _problem(self, draw: Draw, finding: Finding) -> Problem:
        path = finding.path
        if finding.at_key:  # of an unknown key, only its own place helps
            source = (*draw.sources[path[:-1]], path[-1]) if path[:-1] in draw.sources else path
        else:
            while path not in draw.sources:
                path = path[:-1]
            source = draw.sources[path]
        place = self.document.place(source, key=finding.at_key)
        return Problem(place, show_path(("model", *finding.path)), finding.message)


def load_space(path: str | Path) -> Space:
    """Reads a space and checks all of it. SpecError names every problem with file:line:column."""
    document = reading.read(path)
    folder = Path(path).absolute().parent
    blocks = plugins.load_named(document, folder)
    file = validation.load(SpaceFile, document, {"folder": folder})
    problems = [
        Problem(document.place(source), show_path(source), message)
        for section in ("model", "shared", "define")
        for source, message in _static_problems(document.data.get(section), (section,), file)
    ]
    if problems:
        raise SpecError(problems)
    space = Space(document, file, blocks)
    space.check()
    return space


def _static_problems(node: Any, source: Key, file: SpaceFile) -> Iterator[tuple[Key, str]]:
    """Domains that say nothing legal and names that lead nowhere."""
    if isinstance(node, str) and node.startswith("$"):
        known = [*file.shared, *file.define]
        if node[1:] not in known:
            yield source, f"{node} is not defined; {reading.nearest(node[1:], known)}"
        elif source[0] == "shared":
            yield source, f"{node}: a shared decision stands alone; move it to define:"
    elif isinstance(node, dict):
        if domains.decision_key(node):
            try:
                domains.parse(node)
            except ValueError as error:
                yield source, str(error)
                return
        for key, child in node.items():
            yield from _static_problems(child, (*source, key), file)
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _static_problems(child, (*source, i), file)


class _Resolver:
    """Walks the document once, asking the chooser at each decision."""

    def __init__(self, file: SpaceFile, choose: Chooser) -> None:
        self.file, self.choose = file, choose
        self.sources: dict[Key, Key] = {}
        self.decisions: dict[str, Value] = {}
        self.domains: dict[str, Finite] = {}
        self.expanding: list[str] = []

    def run(self) -> Draw:
        data = self.walk(self.file.model, ("model",), (), "")
        return Draw(data, self.sources, self.decisions, self.domains)

    def walk(self, node: Any, source: Key, target: Key, name: str) -> Any:
        """The value of `node`: at `source` in the file, at `target` in the model."""
        self.sources[target] = source
        if isinstance(node, str) and node.startswith("$"):
            return self.reference(node[1:], target, name)
        if isinstance(node, dict) and domains.decision_key(node):
            return self.decision(node, source, target, name)
        if isinstance(node, dict):
            return {
                key: self.walk(child, (*source, key), (*target, key), f"{name}/{key}".lstrip("/"))
                for key, child in node.items()
            }
        if isinstance(node, list):
            return [
                self.walk(child, (*source, i), (*target, i), f"{name}/{i}".lstrip("/"))
                for i, child in enumerate(node)
            ]
        return node

    def reference(self, key: str, target: Key, name: str) -> Any:
        if key in self.file.shared:
            return self.walk(self.file.shared[key], ("shared", key), target, f"shared/{key}")
        if key in self.expanding:
            loop = " -> ".join(f"${k}" for k in [*self.expanding, key])
            raise SpecError([Problem(None, f"define.{key}", f"{loop} never ends")])
        self.expanding.append(key)
        value = self.walk(self.file.define[key], ("define", key), target, name)
        self.expanding.pop()
        return value

    def decision(self, node: dict, source: Key, target: Key, name: str) -> Any:
        domain = domains.parse(node)
        if name not in self.decisions:  # a shared decision is made once
            self.decisions[name] = self.choose(name, domain)
            self.domains[name] = domain
        value = self.decisions[name]
        if not isinstance(domain, Choice):
            return value
        i = domain.index(value)
        option, key = domain.nodes[i], domains.decision_key(node)
        if key == "composition":
            return option
        inner = (*source, str(key), i if key == "choice" else str(value))
        below = f"{name}/{value}"
        if key == "choice":
            return self.walk(option, inner, target, below)
        result = self.walk({} if option is None else option, inner, target, below)
        return {"type": value, **result} if isinstance(result, dict) else result


def part_paths(data: Any, path: Key = ()) -> list[Key]:
    """The paths of all mappings in resolved data: where a part may stand."""
    if isinstance(data, dict):
        inner = [part_paths(child, (*path, key)) for key, child in data.items()]
    elif isinstance(data, list):
        inner = [part_paths(child, (*path, i)) for i, child in enumerate(data)]
    else:
        inner = []
    here = [path] if isinstance(data, dict) else []
    return [*here, *itertools.chain(*inner)]


def build_findings(spec: ModelSpec) -> list[Finding]:
    """The blocks of a spec that refuse their own sizes, each at its path."""
    return list(_refusals(spec, spec.dim, ()))


def _refusals(value: Any, dim: int, path: Key) -> Iterator[Finding]:
    if isinstance(value, PartSpec) and issubclass(classes()[type(value)], Mixer | ChannelMixer):
        try:
            with torch.device("meta"):
                factory(value)(dim)
        except ValueError as error:
            yield Finding(path, str(error))
    elif isinstance(value, Division):
        for i, (mixer, width) in enumerate(zip(value.parts, value.widths(dim), strict=True)):
            yield from _refusals(mixer, width, (*path, "parts", i))
    elif isinstance(value, pydantic.BaseModel):
        for name in type(value).model_fields:
            yield from _refusals(getattr(value, name), dim, (*path, name))
    elif isinstance(value, list | dict):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from _refusals(child, dim, (*path, key))
