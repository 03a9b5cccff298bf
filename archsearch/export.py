"""Out of the toolkit: the best of a study, a trial of it, or a spec, as a folder of its own.

    package    Python that imports torch alone (package.py)
    hf         what `AutoModelForCausalLM.from_pretrained` loads (hub.py)

The folder is written aside, loaded in a fresh process, and what it gives compared bit for bit with
the model here; only then does it get its name.
"""

import keyword
import os
import tempfile
from pathlib import Path
from typing import Literal

from archsearch import hub, package
from archsearch.errors import UserError
from archsearch.origin import origin_of

Format = Literal["package", "hf"]
WRITERS = {"package": package, "hf": hub}


def export(
    source: str | Path, out: str | Path, *, trial: int | None = None, format: Format = "package"
) -> Path:
    """Writes the best architecture of a study, or a spec with untrained weights, as a folder.

    Args:
        source: a study's folder, or a spec file.
        out: the folder to make; its name is the name of the model.
        trial: a trial of the study's in place of its best candidate.
        format: in which form.

    Raises:
        UserError: nothing to export, not in this form, the folder exists, or its name cannot be
            imported.
    """
    out, writer = Path(out).absolute(), WRITERS[format]
    if not out.name.isidentifier() or keyword.iskeyword(out.name):
        raise UserError(f"{out.name!r} cannot be imported; name the folder like a Python package")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out or delete it")
    origin = origin_of(source, trial)
    writer.require(origin)
    model = origin.model()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as aside:
        folder = Path(aside) / out.name
        writer.write(folder, model, origin)
        writer.verify(folder, model)
        os.replace(folder, out)
    return out
