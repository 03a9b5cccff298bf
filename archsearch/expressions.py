"""Expressions: `=layers // 2` in place of a value, and the rules of `constraints:`.

    numbers, 'text', true, false, null, names          name.key[0] goes into a mapping or list
    + - * /   // (without remainder, or it is an error)   %   -x
    min(a, b, ...)  max(a, b, ...)  ceil(x)  and what else the caller names
    == != < <= > >=  in  not in  and  or  not          in rules

Python's parser reads them into a tree; the nodes above are walked, all others are refused, so that
nothing in a file can run. The text is at most 200 characters long.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from archsearch.reading import nearest

LONGEST = 200
WORDS = {"true": True, "false": False, "null": None}
Names = Callable[[str], Any]
"""The value of a name; KeyError where there is none."""


def is_expression(node: Any) -> bool:
    return isinstance(node, str) and node.startswith("=")


@dataclass(frozen=True)
class Expression:
    """One parsed expression. `names` are those that it reads, in order of appearance."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]

    def value(self, names: Names, functions: Mapping[str, Callable[..., Any]] = {}) -> Any:
        """What it comes to; ValueError says what went wrong, and where in the text."""
        return _Evaluator(self.text, names, {**FUNCTIONS, **functions}).visit(self.tree)


def parse(text: str) -> Expression:
    """Reads an expression, its leading `=` gone; ValueError tells what is not one."""
    if len(text) > LONGEST:
        raise ValueError(f"an expression of {len(text)} characters; at most {LONGEST}")
    try:
        with warnings.catch_warnings():  # of Python about Python, such as `1 is 1`
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise ValueError(f"{text!r} is no expression: {reason}") from None
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    return Expression(text, tree, tuple(dict.fromkeys(n for n in names if n not in WORDS)))


def _exactly(a: Any, b: Any) -> Any:
    quotient, rest = divmod(a, b)
    if rest:
        raise ValueError(f"{a} is no multiple of {b}; round with ceil(a / b) or (a - a % b) / b")
    return quotient


def _ceil(x: Any) -> int:
    return math.ceil(x)


FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "ceil": _ceil}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: _exactly,
    ast.Mod: operator.mod,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class _Evaluator(ast.NodeVisitor):
    """Walks the nodes that the language has; `generic_visit` refuses the rest."""

    def __init__(self, text: str, names: Names, functions: Mapping[str, Callable]) -> None:
        self.text, self.names, self.functions = text, names, functions

    def generic_visit(self, node: ast.AST) -> Any:
        part = ast.get_source_segment(self.text.strip(), node) or type(node).__name__
        raise ValueError(f"{part!r} is not part of the language: + - * / // % min max ceil")

    def visit_Constant(self, node: ast.Constant) -> Any:
        if type(node.value) not in (int, float, str):
            return self.generic_visit(node)
        return node.value

    def visit_Name(self, node: ast.Name) -> Any:
        return WORDS[node.id] if node.id in WORDS else self.names(node.id)

    def visit_List(self, node: ast.List) -> list[Any]:
        return [self.visit(item) for item in node.elts]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if isinstance(node.op, ast.USub):
            return -_number(value)
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        if (apply := ARITHMETIC.get(type(node.op))) is None:
            return self.generic_visit(node)
        a, b = _number(self.visit(node.left)), _number(self.visit(node.right))
        try:
            return _tidy(apply(a, b))
        except ZeroDivisionError:
            raise ValueError(f"{self.text!r} divides by zero") from None
        except OverflowError:
            raise ValueError(f"{self.text!r} is too large a number") from None

    def visit_BoolOp(self, node: ast.BoolOp) -> bool:
        stop = isinstance(node.op, ast.Or)
        return stop if any(bool(self.visit(v)) is stop for v in node.values) else not stop

    def visit_Compare(self, node: ast.Compare) -> bool:
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        for op, a, b in zip(node.ops, sides, sides[1:], strict=False):
            if (compare := COMPARISONS.get(type(op))) is None:
                return self.generic_visit(node)
            try:
                if not compare(a, b):
                    return False
            except TypeError:
                raise ValueError(f"{self.text!r}: {a!r} and {b!r} have no order") from None
        return True

    def visit_Call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.keywords:
            return self.generic_visit(node)
        if (function := self.functions.get(node.func.id)) is None:
            raise ValueError(
                f"no function {node.func.id!r}; {nearest(node.func.id, self.functions)}"
            )
        arguments = [self.visit(argument) for argument in node.args]
        try:
            return _tidy(function(*arguments))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{node.func.id}({arguments}): {error}") from None

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        return _step(self.visit(node.value), node.attr)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        return _step(self.visit(node.value), self.visit(node.slice))


def _step(value: Any, key: Any) -> Any:
    """What stands below a mapping or list; null where nothing does."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and type(key) is int:
        return value[key] if -len(value) <= key < len(value) else None
    return None


def _number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number to calculate with")
    return value


def _tidy(value: Any) -> Any:
    """An integer where a float is one: 64 / 2 is 32 heads."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value
