"""The mistakes of a user, told apart from ours: the CLI prints these without a traceback."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A position in a file, both counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, at which path, what came and what is allowed."""

    place: Place | None
    path: str
    message: str

    def __str__(self) -> str:
        head = ": ".join(str(part) for part in (self.place, self.path) if part)
        return f"{head}: {self.message}" if head else self.message


class UserError(ValueError):
    """A mistake in what the user wrote or asked; exit code 2."""

    exit_code = 2


class SpecError(UserError):
    """A file that does not say a legal space or spec; lists every problem found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class ConstraintBroken(SpecError):
    """A model that breaks a rule of its space, `constraint` by name."""

    def __init__(self, problems: list[Problem], constraint: str) -> None:
        self.constraint = constraint
        super().__init__(problems)


class NoFeasibleCandidate(UserError):
    """A legal space in which nothing fits the budgets; exit code 1."""

    exit_code = 1
