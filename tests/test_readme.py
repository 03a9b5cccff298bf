"""What the README says runs."""

import re
from pathlib import Path

import pytest

from archsearch import load_space

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", TEXT, re.S))
def test_python_blocks_run(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", TEXT, re.S))
def test_yaml_blocks_are_legal_spaces(text: str, tmp_path: Path) -> None:
    (tmp_path / "readme.yaml").write_text(text)
    load_space(tmp_path / "readme.yaml").sample(0)


def test_commands_and_files_exist() -> None:
    from archsearch.cli import app

    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"^archsearch (\w+)", TEXT, re.M)) == commands
    targets = set(re.findall(r"^make (\w+)", TEXT, re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link
