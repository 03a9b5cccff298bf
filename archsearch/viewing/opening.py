"""What a path on the command line names: a space, an architecture, or a study with a best one."""

from pathlib import Path
from typing import NamedTuple

from archsearch import extending
from archsearch.errors import UserError
from archsearch.folder import StudyFolder
from archsearch.loading import OF_A_SPACE, load_space, load_spec
from archsearch.space import Space
from archsearch.spec import ModelSpec


class Opened(NamedTuple):
    """A space or a spec, and what to call it."""

    name: str
    what: Space | ModelSpec


def opened(path: Path) -> Opened:
    """Loads what is there; of a study's folder its best architecture.

    Raises:
        UserError: neither, or something is wrong with it.
    """
    if path.is_dir():
        return Opened(path.resolve().name, load_spec(_best(path)))
    data = extending.read(path).data
    if "model" not in data:
        raise UserError(
            f"{path}: neither a space nor a spec, its keys are {', '.join(data) or 'none'}; both "
            "have `model:`, a space also `tasks:`"
        )
    if OF_A_SPACE & {*data}:
        space = load_space(path)
        return Opened(space.name, space)
    return Opened(str(data.get("name") or path.stem), load_spec(path))


def _best(study: Path) -> Path:
    folder = StudyFolder(study)
    folder.read_record()  # or says that there is no study here
    spec = folder.best / "spec.yaml"
    if not spec.exists():
        raise UserError(f"{study}: no candidate was trained yet; run the study first")
    return spec
