"""JSON Schema of what may stand in place of a value: decisions, names, expressions, repeats.

What is the same for every value is a definition, referred to by name; what depends on the value is
a function of its schema. The options are those of domains.py, the words those of its docstring and
of resolving.py's. Beside the standard's keywords stand some of editors: `defaultSnippets` are
offered where a value is due, `patternErrorMessage` is said of what does not match a pattern.
"""

import re
from typing import Any

from archsearch import domains, resolving, static

Schema = dict[str, Any]


def told(text: str | None) -> dict[str, str]:
    """What the table in a module's docstring says of each mapping, by its first key."""
    rows = re.findall(r"^    \{(\w+): [^}]*\}+(.*?)(?=^    \{|^$)", text or "", re.S | re.M)
    return {key: " ".join(words.split()) for key, words in rows}


DOCS = told(resolving.__doc__) | told(domains.__doc__)


def ref(name: str) -> Schema:
    """A reference to a definition."""
    return {"$ref": f"#/definitions/{name}"}


def any_of(*schemas: Schema) -> Schema:
    """One of them, without a wrapper about a single one."""
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def described(schema: Schema, words: str) -> Schema:
    """The schema with its description, which draft 7 does not see beside a reference."""
    return {"description": words, **({"anyOf": [schema]} if "$ref" in schema else schema)}


def escaped(name: str) -> str:
    """The pattern of a name; JavaScript's, too, which knows no escaped hyphen."""
    return re.escape(name).replace("\\-", "-")


def closed(properties: dict[str, Schema], required: list[str], **more: Any) -> Schema:
    """A mapping with these keys and no other."""
    return {
        "type": "object",
        **more,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


NAME, EXPRESSION, WEIGHTS = ref("name"), ref("expression"), ref("weights")
TEXT: Schema = {"type": "string"}
POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
UNDECIDED = dict.fromkeys((*domains.KEYS, "repeat"), False)
"""Keys that a mapping with names of its own cannot have: it would be a decision."""


def pair(number: Schema) -> Schema:
    """The two ends of a range."""
    return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}


def decision(key: str, said: Schema, value: str, more: str = "", **options: Schema) -> Schema:
    """The mapping of a decision; `options` are the schemas of what stands beside it.

    An editor offers to write `value` after the key, and `more` after that.
    """
    known = {name: ref(name) for name in ("doc", "step", "log")} | options
    words = {
        "default": "what is taken where nothing is searched; the first unless told",
        "prior": "what is thought of it before the search",
    }
    beside = sorted(domains.COMMON | domains.OPTIONS.get(key, set()))
    return closed(
        {
            key: described(offered(said, value), DOCS[key]),
            **{n: described(known[n], words[n]) if n in words else known[n] for n in beside},
        },
        [key],
        **mapping(key, value + more),
    )


def mapping(key: str, value: str) -> Schema:
    """The name of a mapping with a key of its own, and what an editor offers to write for it."""
    title, text = "{" + key + ": ...}", "{" + f"{key}: {value}" + "}"
    return {"title": title, "defaultSnippets": [{"label": title, "bodyText": text}]}


def offered(said: Schema, value: str) -> Schema:
    """What stands after a key; an editor offers to write `value`, where it fits in a line."""
    if value.startswith("{"):
        return said
    label = re.sub(r"\$\{\d:(.*?)\}", r"\1", value).replace("$1", "...")
    return {"defaultSnippets": [{"label": label, "body": value}], "anyOf": [said]}


def choice(literal: Schema) -> Schema:
    """One of several literals."""
    said = {"type": "array", "items": literal, "minItems": 1}
    default = any_of(literal, TEXT)
    return decision("choice", said, "[$1]", default=default, prior=WEIGHTS)


def choose(arms: dict[str, Schema], other: Schema) -> Schema:
    """Named alternatives; `other` is the schema of an arm that has none of these names."""
    said = {"type": "object", "properties": arms, "minProperties": 1, "additionalProperties": other}
    by_name = {"type": "object", "additionalProperties": POSITIVE}
    value = "{$1}" if arms else "{${1:name}: $2}"
    return decision("choose", said, value, default=TEXT, prior=any_of(WEIGHTS, by_name))


def repeat(item: Schema) -> Schema:
    """Elements of a list, or a whole one."""
    times = {"type": "integer", "minimum": 0, "maximum": resolving.MOST_TIMES}
    at = {"type": "object", "additionalProperties": item}
    known = {
        "repeat": described(item, DOCS["repeat"]),
        "times": described(any_of(times, EXPRESSION), "how often, such as 4 or =layers"),
        "share": {"type": "boolean", "description": "one draw for all of them"},
        "at": described(at, "other nodes at an index or slice, such as -1 or 2:4"),
    }
    return closed(
        {key: known[key] for key in resolving.REPEAT},
        ["repeat", "times"],
        **mapping("repeat", "$1, times: ${2:=layers}"),
    )


def _range(key: str, number: str, text: str) -> Schema:
    plain = {"type": number}
    ends = pair(any_of(plain, EXPRESSION))
    return decision(key, ends, text, default=plain, prior=pair(plain))


def _composition() -> Schema:
    count = any_of({"type": "integer", "minimum": 1}, EXPRESSION)
    parts = {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True}
    parts = described(parts, "a name for each summand")
    text = "${1:=layers}"
    made = decision(
        "composition", count, text, ", parts: [$2]", parts=parts, default=TEXT, prior=WEIGHTS
    )
    return {**made, "required": ["composition", "parts"]}


def _solve() -> Schema:
    words = "[least, largest]: the largest size of this range that keeps all budgets"
    size = {"type": "integer", "minimum": 1}
    known = {
        "solve": described(offered(pair(size), "[${1:16}, ${2:256}]"), words),
        "step": described(size, "of two sizes"),
    }
    return closed(
        {key: known[key] for key in sorted(static.SOLVE)},
        ["solve"],
        **mapping("solve", "[${1:16}, ${2:256}]"),
    )


def definitions() -> dict[str, Schema]:
    """What is the same for every value, by name."""
    number, count = {"type": "number"}, any_of({"type": "integer", "minimum": 2}, EXPRESSION)
    return {
        "name": {
            "type": "string",
            "pattern": "^[$=]",
            "patternErrorMessage": "Neither a value that is allowed here, nor $name or =expression",
        },
        "expression": {
            "type": "string",
            "pattern": "^=",
            "patternErrorMessage": "Neither a number nor an =expression",
        },
        "weights": {"type": "array", "items": POSITIVE, "minItems": 1},
        "doc": described(TEXT, "a sentence about this decision"),
        "step": described(any_of(POSITIVE, EXPRESSION), "distance of two values"),
        "log": {"type": "boolean", "description": "even in the logarithm; goes without step"},
        "int": _range("int", "integer", "[${1:1}, ${2:8}]"),
        "float": _range("float", "number", "[${1:0.5}, ${2:2.0}]"),
        "fraction": decision(
            "fraction", {"const": True}, "true", default=number, prior=pair(number)
        ),
        "composition": _composition(),
        "simplex": decision("simplex", count, "${1:2}", default=TEXT, prior=WEIGHTS),
        "solve": _solve(),
    }


RANGES = {"integer": ("int",), "number": ("int", "float", "fraction")}
"""The domains of a number's type."""
