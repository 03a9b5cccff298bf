"""Where a decision may stand: pydantic's JSON Schema of the models, walked value by value.

A value is defined once however many fields take it, under a name that says what it may be:
`value_integer_or_null` is such a value, decided or not, `literal_...` what may stand in a choice of
them. A model is defined under its own name, without its type, which may be said by the arm of a
`choose`.
"""

import re
from collections.abc import Callable

from archsearch.schema import decisions
from archsearch.schema.decisions import (
    NAME,
    Schema,
    any_of,
    choice,
    choose,
    closed,
    described,
    escaped,
    ref,
)

NULL: Schema = {"type": "null"}
Field = Callable[[Schema], Schema]
"""From what pydantic says of a value to what may stand there."""


def words(node: Schema) -> Schema:
    """What is told of a value, apart from what it may be."""
    return {key: node[key] for key in ("description", "default") if key in node}


def bare(node: Schema) -> Schema:
    """What a value may be, apart from what is told of it."""
    return {k: v for k, v in node.items() if k not in ("description", "default", "title")}


def forms(node: Schema) -> list[Schema]:
    """The alternatives of a value, none of which has alternatives but by `type`."""
    return [form for arm in node["anyOf"] for form in forms(arm)] if "anyOf" in node else [node]


def union_of(node: Schema) -> Schema | None:
    """Pydantic's union of the parts that a value may be."""
    return next((form for form in forms(node) if "oneOf" in form), None)


def label(node: Schema) -> str:
    """A name for what a value may be, in words that a reference may have."""
    if "anyOf" in node:
        arms = [arm for arm in forms(node) if not (union_of(node) and "enum" in arm)]
        return "_or_".join(map(label, arms))
    if "oneOf" in node:
        return node["title"]
    if "$ref" in node:
        return node["$ref"].rpartition("/")[2]
    if "enum" in node:
        names = "_or_".join(map(str, node["enum"]))
        return node["title"] if "enumDescriptions" in node else names
    told = [node["type"]]
    for key, value in bare(node).items():
        inner = value.values() if key == "patternProperties" else [value]
        told += [key, *(label(part) if isinstance(part, dict) else str(part) for part in inner)]
    return re.sub(r"\W+", "_", "_".join(told).replace("_type_" + node["type"], "")).strip("_")


def named(tags: dict[str, str]) -> Schema:
    """One of these names, each with what it says."""
    return {"enum": list(tags), "enumDescriptions": list(tags.values())}


def typed(kind: Schema, bodies: dict[str, list[Schema]]) -> Schema:
    """A mapping whose `type` says what else stands in it.

    Where the type is itself a decision, anything does. By pattern, as an editor that completes
    takes `mamba` for an unfinished `mamba2` where the latter is a constant.
    """
    return {
        "type": "object",
        "properties": {"type": described(kind, "what it is; the options beside it follow from it")},
        "required": ["type"],
        "allOf": [
            {"if": _is(name), "then": any_of(*alternatives)}
            for name, alternatives in bodies.items()
        ],
    }


def _is(name: str) -> Schema:
    """A mapping of this type."""
    said = {"type": "string", "pattern": f"^{escaped(name)}$"}
    return {"type": "object", "properties": {"type": said}, "required": ["type"]}


class Writer:
    """Collects definitions. `models` are pydantic's of every model, by name."""

    def __init__(self, models: dict[str, Schema]) -> None:
        self.models = models
        self.definitions = decisions.definitions()
        self.unions: list[Schema] = []

    def define(self, name: str, make: Callable[[], Schema]) -> Schema:
        """A reference to a definition, made on first use; it may refer to itself."""
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = make()
        return ref(name)

    def plain(self, node: Schema) -> Schema:
        """Where no decision may stand."""
        rest = bare(node)
        if "oneOf" in rest:
            return typed(named(self.tags(rest)), self.bodies([rest], self.plain))
        if "$ref" in rest:
            return self.body(label(rest), self.plain)
        if "anyOf" in rest:
            return {"anyOf": [self.plain(arm) for arm in rest["anyOf"]]}
        inner = {k: self.plain(rest[k]) for k in ("items",) if k in rest}
        return {**rest, **inner}

    def property(self, node: Schema, field: Field) -> Schema:
        """A field of a model: what may stand there, what it is, its default."""
        found, told = field(node), {**self.summary(node), **words(node)}
        default = told.pop("default", None)
        if isinstance(default, dict):  # a part, or a section that may be left out
            default = default["type"] if self.is_plain(default, node) else None
        if default is not None and default != []:  # an editor writes it: nothing is no start
            told["default"] = default
        return {**told, **({"anyOf": [found]} if "$ref" in found else found)}

    def summary(self, node: Schema) -> Schema:
        """What a section says of itself."""
        return words(self.models[label(node)]) if "$ref" in node else {}

    def is_plain(self, default: Schema, node: Schema) -> bool:
        """Whether a part is what its name alone says."""
        if (union := union_of(node)) is None:
            return False
        options = self.models[self.members(union)[default["type"]]]["properties"]
        return all(value == options[key].get("default") for key, value in default.items())

    def members(self, union: Schema) -> dict[str, str]:
        """The models of a union by their types."""
        mapping = union["discriminator"]["mapping"]
        return {name: mapping[name].rpartition("/")[2] for name in sorted(mapping)}

    def tags(self, union: Schema) -> dict[str, str]:
        """The types of a union with what each is."""
        found = self.members(union).items()
        return {name: self.models[model]["description"].split("\n")[0] for name, model in found}

    def bodies(self, unions: list[Schema], field: Field) -> dict[str, list[Schema]]:
        """The mappings that a type may mean."""
        found: dict[str, list[Schema]] = {}
        for name, model in sorted({pair for u in unions for pair in self.members(u).items()}):
            found.setdefault(name, []).append(self.body(model, field))
        return found

    def body(self, name: str, field: Field) -> Schema:
        """A mapping of a model's fields; its type may be left out."""
        return self.define(name, lambda: self._body(self.models[name], field))

    def _body(self, model: Schema, field: Field) -> Schema:
        tag = model["properties"].get("type", {}).get("const")
        fields = {"type": {"const": tag, "doNotSuggest": True}} if tag else {}
        options = {key: node for key, node in model["properties"].items() if key not in fields}
        fields |= {key: self.property(node, field) for key, node in options.items()}
        told = {**({"title": tag} if tag else {}), **words(model)}
        return closed(fields, model.get("required", []), **told)

    def value(self, node: Schema) -> Schema:
        """Where a decision may stand."""
        return self.define(f"value_{label(node)}", lambda: self._value(node))

    def _value(self, node: Schema) -> Schema:
        itself, union = self.value(node), union_of(node)
        literals: list[Schema] = []  # what may stand in a choice
        others: list[Schema] = []
        for form in forms(node):
            told, more = self.form(form, itself)
            literals += told
            others += more
        if not union and literals:
            others.append(choose({}, itself))
        literal = self.define(f"literal_{label(node)}", lambda: any_of(*literals, NAME))
        return any_of(literal, choice(literal), *others)

    def form(self, form: Schema, itself: Schema) -> tuple[list[Schema], list[Schema]]:
        """The literals of one form of a value, and what else may stand for it."""
        kind = form.get("type")
        if "oneOf" in form:
            return [], self.part(form, itself)
        if "$ref" in form:
            return [], [self.body(label(form), self.value)]
        if kind == "object":
            return [], self.mapping(form)
        if kind == "array":
            return self.elements(form)
        return [bare(form)], [ref(name) for name in decisions.RANGES.get(str(kind), ())]

    def part(self, union: Schema, itself: Schema) -> list[Schema]:
        """A part by its type and options, or by an arm that is called like it."""
        self.unions.append(union)
        tags, bodies = self.tags(union), self.bodies([union], self.value)
        kind = self.value({"title": f"type_of_{label(union)}", **named(tags)})
        arms = {n: described(any_of(*bodies[n], itself, NULL), tags[n]) for n in tags}
        return [typed(kind, bodies), choose(arms, itself)]

    def mapping(self, form: Schema) -> list[Schema]:
        """A mapping with names of one's own."""
        made = {**bare(form), "properties": decisions.UNDECIDED}
        if "patternProperties" in form:
            inner = form["patternProperties"].items()
            made["patternProperties"] = {key: self.value(node) for key, node in inner}
            return [{**made, "additionalProperties": False}]
        made["additionalProperties"] = self.value(form["additionalProperties"])
        counts = form["additionalProperties"].get("type") == "integer"
        return [made, *([ref("composition")] if counts else [])]

    def elements(self, form: Schema) -> tuple[list[Schema], list[Schema]]:
        """A list, whose elements may be repeated: so it may be shorter than what it comes to."""
        item = self.value(form["items"])
        least = {"minItems": 1} if form.get("minItems") else {}
        repeated = decisions.repeat(item)
        fractions = form["items"].get("type") == "number"
        literal = {"type": "array", "items": any_of(item, repeated), **least}
        return [literal], [repeated, *([ref("simplex")] if fractions else [])]

    def fragment(self) -> Schema:
        """What may stand under a name: anything that may stand anywhere."""
        return self.define("fragment", lambda: any_of(self.known(), self.fields()))

    def fields(self) -> Schema:
        """Options without their type, or names of one's own: what they are is not known here."""
        kind = {"type": "object", "doNotSuggest": True}  # of a mapping that is called so
        return {
            "type": "object",
            "properties": {"type": kind, **decisions.UNDECIDED},
            "additionalProperties": self.fragment(),
        }

    def known(self) -> Schema:
        """What is a value, a decision, or says its type."""
        return self.define("known_fragment", self._known)

    def _known(self) -> Schema:
        itself, fragment = self.known(), self.fragment()
        tags = {name: told for union in self.unions for name, told in self.tags(union).items()}
        tags = dict(sorted(tags.items()))
        bodies = self.bodies(self.unions, self.value)
        kind = self.value({"title": "type_of_fragment", **named(tags)})
        arms = {n: described(any_of(*bodies[n], itself), tags[n]) for n in tags}
        scalar = {"type": ["string", "number", "boolean", "null"]}
        anything = any_of(named(tags), scalar, {"type": "array", "items": fragment})
        literal = self.define("literal_fragment", lambda: anything)
        return any_of(
            literal,
            choice(literal),
            choose(arms, itself),
            *map(ref, (*decisions.RANGES["number"], "composition", "simplex")),
            decisions.repeat(fragment),
            typed(kind, bodies),
        )
