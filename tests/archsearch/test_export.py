"""The exported package: the same bits, torch alone, streaming with constant state."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from archsearch import build, cost, reference
from archsearch.blocks import Family, Merge, Mixer
from archsearch.blocks.decay import Decay
from archsearch.blocks.moe import MoE
from archsearch.catalogue import schema
from archsearch.ends import Ends, language
from archsearch.errors import UserError
from archsearch.export import export
from archsearch.folder import StudyFolder
from archsearch.loading import load_spec
from archsearch.origin import Origin
from archsearch.package import write
from archsearch.spec import ModelSpec
from archsearch.standalone.generation import generate
from archsearch.workers import save_tensors

OURS = (
    "archsearch", "optuna", "pydantic", "yaml", "safetensors", "plotly", "typer", "rich",
    "torchmetrics", "datasets",
)  # fmt: skip


def spec(mixer: Any = "retention", **layer: Any) -> ModelSpec:
    topology = {"type": "parallel", "branches": [mixer, "short_conv"], **layer}
    causal = not isinstance(mixer, str) or Mixer.members[mixer].causal
    model = {"dim": 16, "layers": 1, "causal": causal, "topology": topology}
    return ModelSpec.model_validate(model)


def members(family: type[Family]) -> list[str]:
    return list(family.members)


MODELS = {
    **{f"mixer_{name}": spec(name) for name in members(Mixer)},
    **{f"merge_{name}": spec(merge=name) for name in members(Merge)},
    **{f"decay_{name}": spec({"type": "retention", "decay": name}) for name in members(Decay)},
    "vector": spec(
        {"type": "retention", "decay": {"type": "selective", "per": "channel", "write": "tied"}}
    ),
    "window": spec(
        {"type": "attention", "window": 3, "conv": 3, "kv_heads": 2}, branch_norm="none"
    ),
    "transformer": reference("transformer", dim=16, layers=2),
    "mamba": reference("mamba", dim=16, layers=1),
    "moe": spec().model_copy(update={"mlp": schema(MoE)()}),
    "layernorm": spec().model_copy(update={"norm": spec().norm}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_source_computes_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over every member of the catalogue."""
    check_the_same_bits(MODELS[name], language(13), name, tmp_path, monkeypatch)


def test_the_source_of_a_fusion_computes_the_same_bits(
    fusion: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_the_same_bits(fusion, language(13), f"fusion_{fusion.hash()}", tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["mixer_mamba", "mixer_bidirectional"])
def test_the_source_computes_the_same_bits_between_any_ends(
    ends: Ends, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"{name}_{abs(hash(repr(ends)))}"
    check_the_same_bits(MODELS[name], ends, package, tmp_path, monkeypatch)


def check_the_same_bits(
    spec: ModelSpec, ends: Ends, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it gives, states and gradients, whole and in pieces."""
    model = build(spec, ends).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    package = f"exported_{name}"
    write(tmp_path / package, model, Origin(spec, ends, None, "a test"))
    monkeypatch.syspath_prepend(tmp_path)
    twin = importlib.import_module(package).load()
    inputs = ends.inputs(2, 70)
    ours, our_state = model(inputs)
    theirs, their_state = twin(inputs)
    assert torch.equal(ours, theirs)
    assert len(tree_leaves(our_state)) == len(tree_leaves(their_state))
    if spec.causal and ends.streams:
        assert torch.equal(model(inputs[:, :1], our_state)[0], twin(inputs[:, :1], their_state)[0])
    else:
        with pytest.raises(ValueError, match="sees the future"):
            twin(inputs, ())
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (ours_name, p), (theirs_name, q) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert ours_name == theirs_name
        assert p.grad is not None
        assert torch.equal(p.grad, q.grad)


TRITON = {  # imported on a GPU only
    *("causal_conv_triton.py", "chunk_triton.py", "halving_triton.py", "launch.py", "parts.py"),
    *("rows.py", "scan_triton.py", "selective_scan_triton.py", "selective_sweep.py", "steps.py"),
    *("sweep.py", "tuning.py"),
}


def test_only_what_is_used_comes_along(tmp_path: Path) -> None:
    write(
        tmp_path / "m",
        build(MODELS["transformer"], vocab=5),
        Origin(MODELS["transformer"], language(5), None, "t"),
    )
    files = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*.py")}
    assert {"blocks/attention.py", "blocks/swiglu.py", "model.py", "generation.py"} <= files
    assert not files & {"blocks/mamba.py", "blocks/retention.py", "kernels/scan.py"}
    for path in (tmp_path / "m").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in names:
                root = name.split(".")[0]
                there = root == "torch" or root in sys.stdlib_module_names
                assert there or (root == "triton" and path.name in TRITON), f"{path}: {name}"


SPEED = {
    "batch": 4,
    "length": 128,
    "precision": "float32",
    "train": {"tokens_per_second": 14045.9},
    "decode": {"tokens_per_second": 1081.1},
    "machine": {"accelerator": None, "cpu": "2 cores, AVX2", "threads": 1, "torch": "2.13.0"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package from a study folder, with a fusion of everything recurrent."""
    root = tmp_path_factory.mktemp("export")
    folder = StudyFolder(root / "study")
    fusion = spec({"type": "retention", "decay": "selective", "conv": 4}, merge="gate").model_copy()
    folder.write_space({"tasks": [{"type": "language"}], "train": {"steps": 3}})
    folder.write_record({"name": "study", "archsearch": "0.1.0", "counts": {"proposed": 9}})
    save_tensors(build(fusion, vocab=256).state_dict(), folder.weights(4))
    about = {"loss": 2.5, "metrics": {"bits_per_byte": 3.61}}
    runs = [{"split": split, "tasks": {"language": about}} for split in ("val", "test", "test")]
    folder.write_trial(
        4,
        fusion,
        {"number": 4, "name": "trial 4", "state": "trained", "runs": runs, "speed": SPEED},
    )
    folder.publish_best(4)
    return export(folder.path, root / "my_model")


PROBE = f"""
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OURS}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Wall())
import torch
import my_model
model = my_model.load()
tokens = torch.randint(256, (2, 9))
logits, state = model(tokens)
def size(s):
    return sum(map(size, s)) if isinstance(s, tuple) else 0 if s is None else s.nbytes
sizes = set()
for token in my_model.generate(model, tokens, 30):
    logits, state = model(token[:, None], state)
    sizes.add(size(state))
assert len(sizes) == 1, sizes
model.train()
loss = torch.nn.functional.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())
loss.backward()
torch.optim.AdamW(model.parameters()).step()
assert not any(m.split(".")[0] in {OURS} for m in sys.modules)
print("alone")
"""


def run_beside(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs Python where the package lies, with that folder on the path as it is by default."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(arguments, cwd=package.parent, env=environment, capture_output=True)


def test_it_runs_alone(exported: Path) -> None:
    """With everything but torch and the standard library walled off; the state stays one size."""
    run = run_beside(exported, sys.executable, "-W", "ignore", "-c", PROBE)
    assert run.stdout.strip() == b"alone", run.stderr.decode()


@pytest.mark.slow
def test_it_runs_in_an_environment_with_torch_and_nothing_else(
    exported: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        f"torch=={torch.__version__.split('+')[0]}",
    ]
    subprocess.run(install, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert not any(name in listed.stdout.lower() for name in ("archsearch", "optuna", "pydantic"))
    run = run_beside(exported, python, "-W", "ignore", "-m", "my_model", "import ", "--steps", "20")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(b"import ")
    assert len(run.stdout) == len(b"import ") + 20 + 1
    subprocess.run([python, "-m", "pip", "install", "--quiet", exported], check=True)
    for arguments in ([], ["import ", "--steps", "5", "--top-p", "0.9"]):  # from anywhere
        command = [python, "-W", "ignore", "-m", "my_model", *arguments]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True)
        assert run.returncode == 0, run.stderr


def test_config_and_readme_tell_what_it_is(exported: Path) -> None:
    assert {p.suffix for p in exported.rglob("*") if p.is_file()} >= {".py", ".json", ".md"}
    config = json.loads((exported / "config.json").read_text())
    assert config["origin"] == "trial 4 of the study study, trained 3 steps on language"
    assert ModelSpec.model_validate(config["spec"]).hash() == config["hash"]
    assert load_spec(exported / "architecture.yaml").hash() == config["hash"]
    assert "Apache License" in (exported / "LICENSE").read_text()
    training = json.loads((exported / "training.json").read_text())
    assert training["trial"]["name"] == "trial 4"
    assert training["recipe"]["steps"] == 3


def test_the_readme_runs_and_has_the_figures(exported: Path, tmp_path: Path) -> None:
    readme = (exported / "README.md").read_text()
    assert "model = my_model.load()" in readme
    code = "".join(part.split("```")[0] for part in readme.split("```python\n")[1:])
    here = tmp_path / exported.name
    here.symlink_to(exported)  # what the code leaves, it leaves here
    run = run_beside(here, sys.executable, "-c", code)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 20
    assert (tmp_path / "state.pt").exists()
    counted = cost(load_spec(exported / "architecture.yaml"), batch=1, seq_len=1024, vocab=256)
    assert f"| parameters | {counted.parameters:,} |" in readme
    assert "One of 9 proposals of the study study, by archsearch 0.1.0" in readme
    assert "| language | bits_per_byte | 3.61 | 3.61 (2) |" in readme
    assert "14,046 tokens per second in training; 1,081 tokens per second in decoding" in readme
    assert "(batch 4, 128 tokens, float32; 2 cores, AVX2, 1 thread, torch 2.13.0)" in readme


def checked(package: Path) -> subprocess.CompletedProcess[bytes]:
    return run_beside(package, sys.executable, "-W", "ignore", "-m", package.name)


def test_a_copy_checks_itself(exported: Path) -> None:
    run = checked(exported)
    assert run.returncode == 0, run.stderr
    config = json.loads((exported / "config.json").read_text())
    told = run.stdout.decode()
    assert f"{config['parameters']} parameters" in told
    assert "weights    as exported" in told
    assert config["outputs_sha256"] in told or "within" in told
    assert "streaming  within" in told


@pytest.mark.parametrize("name", ["model.safetensors", "check.safetensors", "model.py"])
def test_a_damaged_copy_says_so(exported: Path, tmp_path: Path, name: str) -> None:
    """One weight changed, one output, one line of the model."""
    copy = tmp_path / "my_model"
    shutil.copytree(exported, copy)
    data = bytearray((copy / name).read_bytes())
    if name == "model.py":
        text = data.decode()
        line = next(line for line in text.splitlines() if " + " in line)
        data = bytearray(text.replace(line, line.replace(" + ", " - ", 1)).encode())
    else:
        data[-1] ^= 0x40  # the exponent of the last number
    (copy / name).write_bytes(data)
    run = checked(copy)
    assert run.returncode == 1
    assert b"this copy is not what was exported" in run.stderr


@pytest.mark.parametrize("text", ["", "1000 2", "x", "-1"])
def test_a_prompt_without_sense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(MODELS["mamba"].to_yaml())
    folder = export(tmp_path / "s.yaml", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["reads"]["vocab"] = 255  # no bytes
    (folder / "config.json").write_text(json.dumps(config))
    run = run_beside(folder, sys.executable, "-W", "ignore", "-m", "m", "--", text)
    assert run.returncode == 2
    assert b"is no token; it must be ids below 255 with spaces between" in run.stderr


def test_a_spec_can_be_exported_untrained(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(MODELS["mamba"].to_yaml())
    folder = export(tmp_path / "s.yaml", tmp_path / "deep" / "fresh")
    assert load_spec(tmp_path / "s.yaml").hash() in (folder / "config.json").read_text()
    assert "untrained" in (folder / "README.md").read_text()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(MODELS["mamba"].to_yaml())
    with pytest.raises(UserError, match="'my-model' cannot be imported"):
        export(tmp_path / "s.yaml", tmp_path / "my-model")
    with pytest.raises(UserError, match="exists; choose another --out"):
        export(tmp_path / "s.yaml", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        export(tmp_path / "none.yaml", tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no study here"):
        export(tmp_path / "empty", tmp_path / "m")
    StudyFolder(tmp_path / "empty").write_record({"name": "x"})
    with pytest.raises(UserError, match="no candidate was trained yet"):
        export(tmp_path / "empty", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_transformers_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archsearch.hub.find_spec", lambda name: None)
    (tmp_path / "s.yaml").write_text(MODELS["mamba"].to_yaml())
    with pytest.raises(UserError, match=r"hf needs transformers, .*pip install 'archsearch\[hf\]'"):
        export(tmp_path / "s.yaml", tmp_path / "m", format="hf")
    assert {path.name for path in tmp_path.iterdir()} == {"s.yaml"}


def test_generation_is_the_models_own_distribution() -> None:
    """Greedy tokens are those of running the whole sequence again each time."""
    model = build(MODELS["mixer_retention"], vocab=13).double().eval()
    prompt = torch.randint(13, (3, 5))
    tokens = torch.stack(list(generate(model, prompt, 8, temperature=0)), dim=1)
    seen = prompt
    for i in range(8):
        token = model(seen)[0][:, -1].argmax(-1)
        assert torch.equal(token, tokens[:, i])
        seen = torch.cat((seen, token[:, None]), dim=1)
    draws = [
        list(generate(model, prompt, 8, generator=torch.Generator().manual_seed(s)))
        for s in (0, 0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
