"""Constraints: rules that an architecture must keep, judged before anything is built.

    constraints:
      - {name: attention is never first, rule: "first_mixer != 'attention'"}
      - {name: mostly recurrent, rule: "count('attention') <= ceil(layers / 4)"}

A rule is an expression (expressions.py) over

    dim, layers           of the model
    mixers                the mixers of all layers, bottom to top, branches as they are written
    first_mixer           of them; last_mixer
    count(name)           how many of them have this name
    model                 the whole spec, such as model.topology.type; null where nothing is
    the shared names      as they were decided
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from archsearch import expressions
from archsearch.layers import Branches
from archsearch.reading import nearest
from archsearch.spec import ModelSpec
from archsearch.validation import Frozen, told

FACTS = ("dim", "layers", "mixers", "first_mixer", "last_mixer", "model")


def _readable(rule: str) -> str:
    expressions.parse(rule)
    return rule


class Constraint(Frozen):
    """A rule with the name under which its rejections are counted."""

    name: Annotated[str, pydantic.Field(min_length=1, description="rejections are counted by it")]
    rule: Annotated[
        str,
        pydantic.AfterValidator(_readable),
        told("an expression that must be true, such as first_mixer != 'attention'"),
    ]

    def unknown(self, shared: list[str]) -> str | None:
        """What is wrong with the names of the rule, if anything."""
        known = [*FACTS, *shared]
        for name in expressions.parse(self.rule).names:
            if name not in known:
                return f"{name!r} is no fact of an architecture; {nearest(name, known)}"
        return None

    def holds(self, spec: ModelSpec, shared: Mapping[str, Any]) -> bool:
        """Whether the spec keeps the rule; ValueError when the rule cannot be judged."""
        mixers = mixers_of(spec)
        facts = {
            **dict.fromkeys(FACTS),
            **shared,
            "dim": spec.dim,
            "layers": spec.layers,
            "mixers": mixers,
            "first_mixer": mixers[0],
            "last_mixer": mixers[-1],
            "model": spec.model_dump(mode="json"),
        }
        verdict = expressions.parse(self.rule).value(
            lambda name: facts.get(name), {"count": mixers.count}
        )
        if type(verdict) is not bool:
            raise ValueError(f"the rule {self.rule!r} gives {verdict!r}; it must be true or false")
        return verdict


def mixers_of(spec: ModelSpec) -> list[str]:
    """The names of the mixers of all layers, bottom to top, branches as they are written."""
    return [
        mixer.type
        for planned in spec.topology.plan(spec.layers)
        for mixer in (
            planned.layer.branches if isinstance(planned.layer, Branches) else planned.layer.parts
        )
    ]
