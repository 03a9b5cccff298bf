"""One form of an architecture: however it is written one hash and one module, and edited another.

An architecture is drawn as plain data, the layers with what each reads, and spelled in any of the
ways in which a file can say it.
"""

import random
from copy import deepcopy
from typing import Any

import networkx as nx
import pytest
import torch

from archsearch import build
from archsearch.blocks import ChannelMixer, Merge, Mixer, Norm
from archsearch.catalogue import PartSpec, canonical, schema
from archsearch.ends import language
from archsearch.graph import Around, inputs, lower
from archsearch.model import Model, build_meta
from archsearch.refusals import refusals
from archsearch.spec import ModelSpec

Data = dict[str, Any]
DIM, VOCAB = 8, 7
PARTS: dict[type, list[tuple[str, dict[str, list[Any]]]]] = {
    Mixer: [
        ("retention", {"heads": [1, 2], "key_heads": [None, 1, 2], "gate": ["silu", "none"],
                       "decay": ["fixed", "learned", {"type": "selective", "groups": 1}]}),
        ("attention", {"heads": [1, 2], "kv_heads": [None, 1, 2], "window": [None, 1, 3],
                       "dilation": [1, 2], "qk_norm": [False, True]}),
        ("mamba", {"state": [2, 4], "conv": [0, 4]}),
        ("performer", {"heads": [2, 4], "features": [None, 4, 8]}),
        ("h3", {"heads": [None, 8, 4], "state": [2, 4]}),
        ("gla", {"heads": [1, 2], "expand_k": [0.5, 0.52, 1.0]}),
        ("short_conv", {"width": [2, 3], "activation": ["none", "silu"]}),
    ],
    ChannelMixer: [
        ("swiglu", {"expand": [1.0, 1.02, 2.0]}),
        ("mlp", {"expand": [1.0, 1.02, 2.0], "activation": ["gelu", "relu"]}),
        ("moe", {"experts": [2, 3], "top_k": [1, 2], "balance": [0.0, 0.5]}),
    ],
    Merge: [
        ("sum", {"scale": ["fixed", "learned"]}), ("mean", {}), ("concat", {}),
        ("gate", {"per": ["token", "channel"], "entropy": [0.0, 0.1]}),
        ("route", {"temperature": [1.0, 2.0], "entropy": [0.0, -0.0, 0.1]}),
    ],
    Norm: [("rmsnorm", {"eps": [1e-6, 0.5]}), ("layernorm", {})],
}  # fmt: skip
"""What is drawn: types, and values of their options, some of which say the same."""


def family(data: Data) -> type:
    return next(f for f, kinds in PARTS.items() if data["type"] in [name for name, _ in kinds])


def part(rng: random.Random, of: type) -> Data:
    name, options = rng.choice(PARTS[of])
    return {"type": name, **{k: rng.choice(values) for k, values in options.items()}}


def told(data: Data, *sizes: int) -> PartSpec:
    return canonical(schema(family(data).members[data["type"]]).model_validate(data), *sizes)


def drawn(rng: random.Random) -> Data:
    """An architecture that can be built."""
    while True:
        n = rng.randint(1, 4)
        layers = [layer(rng) for _ in range(n)]
        if rng.random() < 0.5:  # repeated, for topologies that say so
            layers = [deepcopy(layers[i % rng.randint(1, 2)]) for i in range(n)]
        reads = [[i - 1] for i in range(n)]
        if rng.random() < 0.5:
            reads = [sorted({rng.randint(-1, i - 1) for _ in "ab"}) for i in range(n)]
            unread = {*range(n - 1)} - {j for of in reads for j in of}
            reads[-1] = sorted({*reads[-1], *unread})
        chain = reads == [[i - 1] for i in range(n)]
        slow = chain and rng.random() < 0.4
        data = {
            "norm": part(rng, Norm),
            "mlp": rng.choice([None, part(rng, ChannelMixer)]),
            "conv": rng.choice([[], [], [3], [2, 3]][: n + 2]) if chain else [],
            "layers": layers,
            "reads": reads,
            "joins": [part(rng, Merge) for _ in range(n)],
            "rates": sorted(rng.choices([1, 2, 4], k=n)) if slow else [1] * n,
        }
        if legal(data):
            return data


def layer(rng: random.Random) -> Data:
    """A mixer, a parallel fusion or a split, all spelled in full."""
    kind = rng.choice(["mixer", "mixer", "parallel", "split"])
    mixers = [
        part(rng, Mixer) for _ in range({"mixer": 1, "split": 2}.get(kind, rng.randint(2, 3)))
    ]
    if kind != "mixer" and rng.random() < 0.4:
        mixers[-1] = deepcopy(mixers[0])
    if kind == "split":
        over = rng.choice(["channels", "heads"])
        return {"split": {"parts": mixers, "ratio": rng.choice([0.25, 0.5]), "over": over}}
    norm = rng.choice(["none", "rms"])
    return {"parallel": {"branches": mixers, "merge": part(rng, Merge), "branch_norm": norm}}


def legal(data: Data) -> bool:
    try:
        spec = ModelSpec.model_validate(written(data))
    except ValueError:
        return False
    return not refusals(spec)


def written(data: Data) -> Data:
    """The model section that says it outright: stages, or named layers."""
    top = as_stages(data) if is_chain(data) else as_graph(data, range(len(data["layers"])))
    return around(data) | {"conv": data["conv"], "topology": top}


def is_chain(data: Data) -> bool:
    return data["reads"] == [[i - 1] for i in range(len(data["layers"]))]


def around(data: Data) -> Data:
    return {"dim": DIM, "layers": len(data["layers"]), "norm": data["norm"], "mlp": data["mlp"]}


def as_stages(data: Data) -> Data:
    stages = {
        f"s{i}": layer | {"rate": rate}
        for i, (layer, rate) in enumerate(zip(data["layers"], data["rates"], strict=True))
    }
    return {"type": "hierarchical", "stages": stages, "depth": dict.fromkeys(stages, 1)}


def as_graph(data: Data, names: Any) -> Data:
    called = {-1: "input"} | {i: f"l{name}" for i, name in enumerate(names)}
    nodes = {
        called[i]: layer | {"reads": [called[j] for j in reads], "join": join}
        for i, (layer, reads, join) in enumerate(
            zip(data["layers"], data["reads"], data["joins"], strict=True)
        )
    }
    return {"type": "graph", "nodes": nodes}


# Spelling: the same architecture in other words.


def respelled(data: Data, rng: random.Random) -> Data:
    """The model section in words drawn at random."""
    data = deepcopy(data)
    data["norm"], data["mlp"] = reworded(data["norm"], rng, DIM), reworded(data["mlp"], rng, DIM)
    data["layers"] = [respelled_layer(layer, rng) for layer in data["layers"]]
    data["joins"] = [
        reworded(join, rng, DIM, len(reads))
        for join, reads in zip(data["joins"], data["reads"], strict=True)
    ]
    n = len(data["layers"])
    if data["conv"] and 2 * len(data["conv"]) <= n and rng.random() < 0.5:
        data["conv"] = [width for width in data["conv"] for _ in "ab"]
    top = rng.choice(spellings(data, rng))
    return around(data) | {"conv": data["conv"], "topology": top}


def reworded(part: Data | None, rng: random.Random, *sizes: int) -> Any:
    """Options in other words of the same meaning, defaults left out or written, a bare name."""
    if part is None:
        return None
    _, options = next(kind for kind in PARTS[family(part)] if kind[0] == part["type"])
    meant, found = told(part, *sizes), dict(part)
    for _ in range(4):
        changed = {n: rng.choice(options[n]) for n in options if rng.random() < 0.5}
        if told(found | changed, *sizes) == meant:
            found |= changed
    defaults = schema(family(part).members[part["type"]])()
    plain = {n: v for n, v in found.items() if n == "type" or v != getattr(defaults, n)}
    if rng.random() < 0.5:
        return plain["type"] if len(plain) == 1 else plain
    return defaults.model_dump(mode="json") | found


def respelled_layer(layer: Data, rng: random.Random) -> Data:
    if "split" in layer:
        split = layer["split"]
        first = round(split["ratio"] * DIM)
        widths, ratio = [first, DIM - first], split["ratio"] + rng.choice([0, 0.02, -0.03])
        parts = [reworded(p, rng, w) for p, w in zip(split["parts"], widths, strict=True)]
        if split["over"] == "heads" and rng.random() < 0.5:
            parts, ratio = parts[::-1], 1 - ratio
        return {"split": {"parts": parts, "ratio": ratio, "over": split["over"]}}
    of = layer["parallel"]
    branches = [reworded(mixer, rng, DIM) for mixer in of["branches"]]
    if len(branches) == 1:
        merge, norm = part(rng, Merge), rng.choice(["rms", "none"])
        loose = {"parallel": {"branches": branches, "merge": merge, "branch_norm": norm}}
        return rng.choice([loose, {"mixer": branches[0]}])
    merge = reworded(of["merge"], rng, DIM, len(branches))
    rng.shuffle(branches)
    return {"parallel": of | {"branches": branches, "merge": merge}}


def spellings(data: Data, rng: random.Random) -> list[Data]:
    """Every topology that can say it, its names and what never comes to pass drawn."""
    n, layers = len(data["layers"]), data["layers"]
    steady = set(data["rates"]) == {1}
    found = []
    if steady:
        listed = as_graph(data, rng.sample(range(n), n))
        nodes = list(listed["nodes"].items())
        if not data["conv"]:  # whose levels go by the order in which layers are listed
            rng.shuffle(nodes)
        for _, node in nodes:
            rng.shuffle(node["reads"])
        found.append(listed | {"nodes": dict(nodes)})
    if not is_chain(data):
        return found
    stages = as_stages(data)
    idle, place = {"mixer": "retention", "rate": rng.choice([1, 2])}, rng.randint(0, n)
    for key, value in (("stages", idle), ("depth", 0)):
        items = list(stages[key].items())
        stages[key] = dict([*items[:place], ("idle", value), *items[place:]])
    found.append(stages)
    mixers = [layer["mixer"] for layer in layers if "mixer" in layer]
    if steady and len(mixers) == n:
        letters = rng.sample("abcdefgh", n)
        spelled = "".join(letters) * rng.randint(1, 2)
        found.append(
            {
                "type": "pattern",
                "mixers": dict(zip(letters, mixers, strict=True)),
                "pattern": spelled,
            }
        )
    if steady and len(mixers) == n and len({repr(m) for m in mixers}) == 1:
        late = {"period": 2 * n + 2, "phase": 0.6}
        found.append({"type": "interleave", "major": mixers[0], "minor": "gru", **late})
        found.append({"type": "interleave", "major": mixers[0], "minor": mixers[0]})
    if steady and len({repr(layer) for layer in layers}) == 1 and "mixer" not in layers[0]:
        (kind, of), *_ = layers[0].items()
        found.append({"type": kind, **of})
    return found


# Edits: another architecture.


def edited(data: Data, rng: random.Random) -> Data:
    """One edit, which may turn out to be none."""
    data = deepcopy(data)
    i = rng.randrange(len(data["layers"]))
    (kind, of), *_ = data["layers"][i].items()
    mixers = of["branches" if kind == "parallel" else "parts"]
    match rng.randrange(9):
        case 0:
            rng.shuffle(data["layers"])
        case 1:
            j = rng.randrange(len(mixers))
            mixers[j] = part(rng, Mixer)
        case 2:
            j = rng.randrange(len(mixers))
            name = rng.choice([n for n in mixers[j] if n != "type"])
            _, options = next(k for k in PARTS[Mixer] if k[0] == mixers[j]["type"])
            mixers[j][name] = rng.choice(options[name])
        case 3 if kind == "parallel":
            of |= {"merge": part(rng, Merge)}
        case 4 if kind == "parallel":
            mixers[:] = (
                [*mixers, deepcopy(mixers[0])] if rng.random() < 0.5 else mixers[:-1] or mixers
            )
        case 5:
            data[rng.choice(["norm", "mlp"])] = None
            data["norm"] = data["norm"] or part(rng, Norm)
        case 6 if is_chain(data):
            data["rates"][i:] = [2 * data["rates"][i]] * (len(data["rates"]) - i)
        case 7 if {*data["rates"]} == {1}:
            reads = {*data["reads"][i]} ^ {rng.randint(-1, i - 1)}
            data["reads"][i] = sorted(reads or {i - 1})
        case 8 if kind == "split":
            of["ratio"] = rng.choice([0.25, 0.5, 0.75])
    return data


def specs(data: Data) -> ModelSpec:
    return ModelSpec.model_validate(written(data))


def born(spec: ModelSpec) -> Model:
    torch.default_generator.manual_seed(0)
    return build(spec, vocab=VOCAB).double()


TOKENS = torch.arange(2 * 9).view(2, 9) * 5 % VOCAB


def test_other_words_of_one_architecture() -> None:
    """One hash, one graph, and so one module of one birth; the topologies are all among them."""
    rng, said = random.Random(0), set()
    for i in range(200):
        data = drawn(rng)
        one, other = specs(data), ModelSpec.model_validate(respelled(data, rng))
        said.add(other.topology.type)
        assert one.hash() == other.hash(), f"{one.to_yaml()}\n{other.to_yaml()}"
        first, second = one.graph(), other.graph()
        assert list(first.edges(data=True)) == list(second.edges(data=True))
        assert list(first.nodes(data=True)) == list(second.nodes(data=True))
        if i % 10 == 0:
            assert torch.equal(born(one)(TOKENS)[0], born(other)(TOKENS)[0])
    assert said == {"graph", "hierarchical", "pattern", "interleave", "parallel", "split"}


def test_an_edit_is_another_architecture() -> None:
    """Another hash; and, of a part of them, other weights, other outputs or other gradients."""
    rng, seen = random.Random(1), 0
    while seen < 200:
        data = drawn(rng)
        after = edited(data, rng)
        if not legal(after):
            continue
        one, other = specs(data), ModelSpec.model_validate(respelled(after, rng))
        if isomorphic(one.graph(), other.graph()):
            continue
        seen += 1
        assert one.hash() != other.hash(), f"{one.to_yaml()}\n{other.to_yaml()}"
        if seen % 5 == 0:
            assert differ(one, other), f"{one.to_yaml()}\n{other.to_yaml()}"


def isomorphic(a: nx.DiGraph, b: nx.DiGraph) -> bool:
    return nx.is_isomorphic(a, b, node_match=dict.__eq__, edge_match=dict.__eq__)


def differ(one: ModelSpec, other: ModelSpec) -> bool:
    shapes = [
        sorted(tuple(p.shape) for p in build_meta(spec, language(VOCAB)).parameters())
        for spec in (one, other)
    ]
    if shapes[0] != shapes[1]:
        return True
    results = []
    for model in (born(one), born(other)):
        logits = model(TOKENS)[0]
        logits[:, -1, 0].sum().backward()
        results.append(
            (logits, sum(p.grad.norm() for p in model.parameters() if p.grad is not None))
        )
    return any(not torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_form_computes_what_was_written() -> None:
    """A module of the layers as they stand, its weights carried over node by node: equal outputs.

    Of a merge, and of a projection of what two heads give, the weights go with their branches.
    """
    rng, several = random.Random(2), 0
    for _ in range(40):
        spec = specs(drawn(rng))
        plan = spec.topology.plan(spec.layers)
        if spec.conv:
            continue
        raw = lower(plan, Around(spec.dim, spec.norm, spec.mlp, spec.causal))
        model = born(spec)
        onto = mapping(raw, model.architecture)
        several += sum(a != b for a, b in onto.items()) > 0
        as_written = Model(raw, language(VOCAB)).double()
        as_written.load_state_dict(carried(model, raw, onto))
        torch.testing.assert_close(as_written(TOKENS)[0], model(TOKENS)[0], rtol=1e-5, atol=1e-6)
    assert several > 5


def mapping(raw: nx.DiGraph, form: nx.DiGraph) -> dict[str, str]:
    """The nodes of the form for those of the graph as written, by networkx; parts canonical."""
    raw = raw.copy()
    for node, data in raw.nodes.items():
        if data["part"] is not None:
            sizes = {"merge": [len(raw.pred[node]) - 1], "join": [len(raw.pred[node])]}
            data["part"] = canonical(data["part"], data["dim"], *sizes.get(data["op"], []))
    match = nx.isomorphism.DiGraphMatcher(raw, form, dict.__eq__, dict.__eq__)
    assert match.is_isomorphic()
    return match.mapping


def carried(model: Model, raw: nx.DiGraph, onto: dict[str, str]) -> dict[str, torch.Tensor]:
    """The weights of a model of the form, under the names and in the order of the graph."""
    found: dict[str, torch.Tensor] = {"embed.weight": model.embed.get_parameter("weight")}
    for node, name in onto.items():
        if node == "embed" or node not in raw or name not in dict(model.named_children()):
            continue
        part = model.get_submodule(name)
        places = [inputs(model.architecture, name).index(onto[m]) for m in inputs(raw, node)]
        if raw.nodes[node]["op"] == "merge":
            places = [place - 1 for place in places[1:]]
        for key, weight in part.state_dict().items():
            if raw.nodes[node]["op"] in ("merge", "join"):
                axis = 1 if key.startswith("project") else 0
                blocks = list(weight.chunk(len(places), axis))
                weight = torch.cat([blocks[place] for place in places], axis)
            if node.endswith("_write"):
                concat = inputs(raw, node)[0]
                ends = inputs(model.architecture, onto[concat])
                widths = [model.architecture.nodes[end]["dim"] for end in ends]
                columns = dict(zip(ends, weight.split(widths, 1), strict=True))
                weight = torch.cat([columns[onto[end]] for end in inputs(raw, concat)], 1)
            found[f"{node}.{key}"] = weight
    return found


@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_equal_branches_are_not_one(merge: str) -> None:
    """Each has weights of its own: the mean of two is another architecture, of other outputs."""
    both = {
        "type": "parallel",
        "branches": ["mamba", "mamba"],
        "merge": merge,
        "branch_norm": "none",
    }
    two, one = (
        ModelSpec.model_validate({"dim": DIM, "layers": 1, "topology": topology})
        for topology in (both, both | {"branches": ["mamba"]})
    )
    assert two.hash() != one.hash()
    assert differ(two, one)
    assert len(build_meta(two, language(VOCAB)).stateful) == 2


def test_which_of_two_equal_layers_is_read() -> None:
    """Two layers on the input are equal; who shares one of them is what the graphs differ in."""
    mixers = {"a": "retention", "b": "mamba", "c": "gru", "z": "short_conv"}
    hashes = []
    for b2, c in (("a1", "a2"), ("a2", "a1"), ("a2", "a2")):
        reads = {"a1": ["input"], "a2": ["input"], "b1": ["a1"], "b2": [b2], "c": [c]}
        reads["z"] = [n for n in reads if not any(n in of for of in reads.values())]
        nodes = {name: {"mixer": mixers[name[0]], "reads": of} for name, of in reads.items()}
        topology = {"type": "graph", "nodes": nodes}
        hashes.append(
            ModelSpec.model_validate({"dim": 8, "layers": 6, "topology": topology}).hash()
        )
    assert hashes[0] != hashes[1] == hashes[2]
