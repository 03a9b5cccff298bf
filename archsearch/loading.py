"""Spaces and specs from files: read, put together, checked, every problem told at once."""

from pathlib import Path

from archsearch import census, covering, extending, plugins, static, validation
from archsearch.document import SpaceFile
from archsearch.errors import Problem, SpecError, UserError
from archsearch.reading import Document, show_path
from archsearch.resolving import Sections, Unresolvable
from archsearch.space import Space
from archsearch.spec import ModelSpec, SpecFile

OF_A_SPACE = {*SpaceFile.model_fields} - {*SpecFile.model_fields}
"""The sections by which a space is told from a spec."""
OPEN = "a decision; a spec has none left: name one value, or draw specs with `archsearch sample`"


def load_space(path: str | Path) -> Space:
    """Reads a space and checks all of it. SpecError names every problem with file:line:column.

    `space.warnings` holds what is legal and looks like a mistake.
    """
    document = extending.read(path)
    if "model" in document.data and not OF_A_SPACE & {*document.data}:
        raise UserError(
            f"{path}: an architecture, not a space: nothing stands around its model; see "
            "`archsearch show` and `archsearch cost`, or add tasks to search it"
        )
    folder = Path(path).absolute().parent
    blocks = plugins.load_named(document, folder)
    context = {"folder": folder}
    problems = [
        validation.locate(document, finding.path, finding)
        for finding in validation.find(SpaceFile, document.data, context)
    ]
    problems += _troubles(document)
    if problems:
        raise SpecError(problems)
    space = Space(document, SpaceFile.model_validate(document.data, context=context), blocks)
    rules = [
        space.at(("constraints", i), message)
        for i, constraint in enumerate(space.file.constraints)
        if (message := constraint.unknown([*space.sections.shared]))
    ]
    if rules:
        raise SpecError(rules)
    if space.file.search.sampler == "exhaustive" and (endless := census.size(space)[1]):
        told = f"exhaustive, and {endless[0]} is a range without a step; give it one"
        raise SpecError([space.at(("search", "sampler"), f"{told}, or take another sampler")])
    space.warnings = [space.at(*trouble) for trouble in static.unused(space.sections)]
    space.warnings += covering.check(space)
    return space


def load_spec(path: str | Path) -> ModelSpec:
    """Reads a spec: the same language with nothing left to decide.

    SpecError names every problem with file:line:column, path and remedy.
    """
    document = extending.read(path)
    if "tasks" in document.data:
        raise UserError(
            f"{path}: a space, not an architecture; `archsearch sample {path} --out DIR` draws some"
        )
    plugins.load_named(document, Path(path).absolute().parent)
    validation.load(SpecFile, document)
    if problems := _troubles(document):
        raise SpecError(problems)
    try:
        draw = Sections(document.data).resolve(lambda name, domain: domain.default)
    except Unresolvable as error:
        raise SpecError([_at(document, (error.source, error.message))]) from None
    if problems := [_at(document, (place, OPEN)) for place in draw.places.values()]:
        raise SpecError(problems)
    if findings := validation.find(ModelSpec, draw.data):
        raise SpecError([draw.problem(document, finding) for finding in findings])
    return ModelSpec.model_validate(draw.data)


def _troubles(document: Document) -> list[Problem]:
    """What is wrong in the sections that may hold decisions, if they are sections at all."""
    data = document.data
    if not all(isinstance(data.get(section, {}), dict) for section in static.SECTIONS):
        return []  # and the schema says so
    found = static.troubles(Sections(data))
    return [_at(document, trouble) for trouble in found]


def _at(document: Document, trouble: static.Trouble) -> Problem:
    source, message = trouble
    return Problem(document.place(source), show_path(source), message)
