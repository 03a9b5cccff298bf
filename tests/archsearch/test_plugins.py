"""Blocks from elsewhere: in YAML, in workers, in studies, in exported models, from a package."""

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from archsearch import build, load_space, load_spec, plugins
from archsearch.blocks import Mixer
from archsearch.errors import UserError
from archsearch.export import export
from archsearch.folder import StudyFolder
from archsearch.preflight import require_same_blocks
from archsearch.provenance import changed_sources, source_versions
from archsearch.source import needed_files
from archsearch.workers import Done, Job, run_job

BLOCK = '''"""y = w x."""
import math

import torch
from archsearch.blocks import (
    Mixer,
    State,
)
from archsearch.blocks.short_conv import ShortConv
from archsearch.kernels import causal_conv, scan


class Scale(Mixer, name="scale"):
    """One factor.

    Args:
        conv: width.
    """

    def __init__(self, dim: int, *, conv: int = 2) -> None:
        super().__init__()
        self.conv = ShortConv(dim, width=conv)

    def forward(self, x, state: State = None):
        return self.conv(x, state)
'''
SPEC = """archsearch: 1
blocks: [lib/scale.py]
model: {dim: 8, layers: 1, topology: {type: interleave, major: {type: scale, conv: 3}}}
"""
SPACE = """archsearch: 1
name: own
blocks: [lib/scale.py]
model: {dim: 8, layers: 1, topology: {type: interleave, major: {type: scale, conv: {choice: [2, 3]}}}}
tasks: [{type: in_context_recall, vocab: 8, length: 16, batch: 4}]
train: {steps: 2}
"""


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    for name in list(plugins._loaded):
        plugins.forget(name)
    assert "scale" not in Mixer.members


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "scale.py").write_text(BLOCK)
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def test_a_file_in_yaml_is_a_block(home: Path) -> None:
    spec = load_spec(home / "spec.yaml")
    assert spec.summary() == "scale"
    model = build(spec, vocab=8)
    assert model(torch.zeros(1, 4, dtype=torch.long))[0].shape == (1, 4, 8)
    space = load_space(home / "space.yaml")
    assert {space.sample(i).hash() for i in range(9)} >= {spec.hash()}


def test_unknown_options_of_it_are_told_as_of_ours(home: Path) -> None:
    (home / "spec.yaml").write_text(SPEC.replace("conv:", "cnov:"))
    with pytest.raises(UserError, match=r"spec.yaml:3:\d+: .*unknown key 'cnov'; did you mean 'c"):
        load_spec(home / "spec.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lib/scael.py]", r"spec.yaml:2:10: blocks\[0\]: .*scael.py: cannot be read"),
        ("[lib/scale]", r"spec.yaml:2:10: blocks\[0\]: .*name it like a module, NAME.py"),
        ("[lib/scale.py, other/scale.py]", r"spec.yaml:2:24: blocks\[1\]: a second scale.py"),
        ("[3]", r"spec.yaml:2:10: blocks\[0\]: got 3; must be a valid string"),
        ("lib/scale.py", r"spec.yaml:2:9: blocks: got 'lib/scale.py'; must be a valid list"),
        ("[]", r"unknown type 'scale'; allowed: attention, bidir"),
    ],
)
def test_mistakes_under_blocks(home: Path, text: str, message: str) -> None:
    (home / "other").mkdir()
    (home / "other" / "scale.py").write_text("x = 1\n")
    (home / "spec.yaml").write_text(SPEC.replace("[lib/scale.py]", text))
    with pytest.raises(UserError, match=message):
        load_spec(home / "spec.yaml")


def test_what_a_file_that_fails_has_registered_is_forgotten(home: Path) -> None:
    (home / "lib" / "scale.py").write_text(BLOCK + "\n\nraise RuntimeError('late')\n")
    with pytest.raises(UserError, match=r"scale.py:28: RuntimeError: late"):
        load_spec(home / "spec.yaml")
    assert "scale" not in Mixer.members


def test_a_copy_is_the_same_file_and_a_trial_stands_alone(home: Path, tmp_path: Path) -> None:
    """best/ of a study can be moved: the block lies beside the spec that names it."""
    spec = load_spec(home / "spec.yaml")
    folder = StudyFolder(tmp_path / "study")
    folder.write_trial(0, spec, {})
    assert folder.read_spec(0) == spec
    (folder.path / "trials").rename(tmp_path / "elsewhere")
    (home / "lib" / "scale.py").unlink()
    for name in list(plugins._loaded):
        plugins.forget(name)
    assert load_spec(tmp_path / "elsewhere" / "0" / "spec.yaml").summary() == "scale"


def test_a_changed_block_is_not_a_resumed_study(home: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.write_blocks(load_space(home / "space.yaml").blocks)
    require_same_blocks(folder, load_space(home / "space.yaml"))
    for name in list(plugins._loaded):
        plugins.forget(name)
    (home / "lib" / "scale.py").write_text(BLOCK + "\n\n# changed\n")
    with pytest.raises(UserError, match=r"scale.py: changed since .*study began with it"):
        require_same_blocks(folder, load_space(home / "space.yaml"))


def test_its_version_is_part_of_a_score(home: Path) -> None:
    """With those of the files of ours that it imports; one that cannot be exported has one too."""
    text = BLOCK.replace("import math", "import numpy")
    (home / "lib" / "scale.py").write_text(text)
    spec = load_spec(home / "spec.yaml")
    versions = source_versions(spec)
    assert versions["scale.py"] == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert {"blocks/short_conv.py", "kernels/causal_conv.py", "kernels/scan.py"} <= {*versions}
    assert "blocks/mamba.py" not in versions
    assert changed_sources(versions) == []


def test_a_job_brings_its_files(home: Path) -> None:
    spec = load_spec(home / "spec.yaml").model_dump(mode="json")
    for name in list(plugins._loaded):
        plugins.forget(name)
    task = {"type": "in_context_recall", "vocab": 8, "length": 16, "batch": 4}
    job = Job(
        0, spec, [task], {"steps": 2}, 0, "val", "cpu", str(home), [str(home / "lib" / "scale.py")]
    )
    assert isinstance(run_job(job), Done)


def test_it_is_exported_with_its_imports_at_home(home: Path, monkeypatch) -> None:
    """Loaded in a fresh process without archsearch's name, by export itself."""
    out = export(home / "spec.yaml", home / "taken_away")
    text = (out / "blocks" / "scale.py").read_text()
    assert "import math\n\nimport torch\nfrom .block import Mixer, State\n" in text
    assert (
        "from .short_conv import ShortConv\nfrom ..kernels.causal_conv import causal_conv\n" in text
    )
    assert "archsearch" not in text
    assert (out / "kernels" / "scan.py").exists()
    assert "| `original/scale.py` | a block from elsewhere" in (out / "README.md").read_text()
    assert load_spec(out / "architecture.yaml").hash() == load_spec(home / "spec.yaml").hash()
    monkeypatch.syspath_prepend(home)
    assert importlib.import_module("taken_away").load()(torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "import numpy",
            "scale.py:2: cannot be exported: 'import numpy'; a block may import torch",
        ),
        ("from . import x", "cannot be exported: 'from . import x'"),
        ("import archsearch.blocks as b", "cannot be exported: 'import archsearch.blocks as b'"),
        (
            "from archsearch.kernels import __doc__",
            "archsearch.kernels has no name '__doc__' of its",
        ),
    ],
)
def test_what_cannot_be_carried_is_told(home: Path, line: str, message: str) -> None:
    text = BLOCK.replace(
        "import math", f"if False:\n    {line}" if "." in line.split()[1][:1] else line
    )
    (home / "lib" / "scale.py").write_text(text)
    with pytest.raises(UserError, match="cannot be exported") as told:
        export(home / "spec.yaml", home / "m")
    assert message in str(told.value)
    assert not (home / "m").exists()


def test_a_file_named_like_one_of_ours_cannot_be_carried(home: Path) -> None:
    (home / "lib" / "scale.py").rename(home / "lib" / "mamba.py")
    (home / "spec.yaml").write_text(SPEC.replace("scale.py", "mamba.py"))
    model = build(load_spec(home / "spec.yaml"), vocab=8)
    with pytest.raises(UserError, match=r"mamba.py is among the exported blocks already; rename"):
        needed_files(model.architecture, model.ends)


def test_an_installed_package_is_in_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "their_blocks.py").write_text(BLOCK.replace('"scale"', '"theirs"'))
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[archsearch.blocks]\ntheirs = their_blocks\n")
    code = "from archsearch.catalogue import Mixer; print('theirs' in Mixer.members)"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout == "True\n", run.stderr


def test_entry_points_are_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_blocks.py").write_text(BLOCK.replace('"scale"', '"theirs"'))
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("theirs", "their_blocks", plugins.GROUPS[0])]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    plugins.load_entry_points.__wrapped__()
    try:
        (tmp_path / "s.yaml").write_text(
            "archsearch: 1\nmodel: {dim: 8, layers: 1, topology: {type: interleave, major: theirs}}"
        )
        model = build(load_spec(tmp_path / "s.yaml"), vocab=8)
        assert (
            "from .block import Mixer, State"
            in needed_files(model.architecture, model.ends)["blocks/their_blocks.py"]
        )
    finally:
        plugins.forget("their_blocks")
    points.append(EntryPoint("gone", "no_such_module", plugins.GROUPS[0]))
    with pytest.raises(
        UserError, match=r"entry point archsearch.blocks gone = 'no_such_module' doe"
    ):
        plugins.load_entry_points.__wrapped__()
    plugins.forget("their_blocks")
