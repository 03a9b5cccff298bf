"""table.csv: every architecture of space.yaml within its budgets, trained with every seed.

    python studies/table/make.py [--workers N]

A row is one training: its loss at each rung and at the end. What is in the file is not
trained again, so a run that was stopped goes on. The seed of the search is measured on val, as a
searcher sees it, the others on test: they say how good an architecture is.
"""

import argparse
import contextlib
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from archsearch import load_space, samplers
from archsearch.durable import write_atomic
from archsearch.engines import cores
from archsearch.errors import SpecError
from archsearch.pool import Pool
from archsearch.space import Space
from archsearch.spec import ModelSpec
from archsearch.workers import Done, Job, Progress, Split

HERE = Path(__file__).parent
TABLE = HERE / "table.csv"
SEEDS: dict[int, Split] = {0: "val", 1: "test", 2: "test"}


Among = dict[str, tuple[ModelSpec, dict[str, float]]]
"""Architectures by hash: their specs and costs."""


def architectures(space: Space) -> Among:
    """What is within the budgets."""
    found: Among = {}
    seen: set[str] = set()
    for decisions in samplers.every(space):
        with contextlib.suppress(SpecError):  # a combination that is no model
            spec = space.decide(lambda path, _, drawn=decisions: drawn[path])
            if (digest := spec.hash()) not in seen:
                seen.add(digest)
                screened = space.file.budgets.screen(spec, space.file.ends)
                if screened.excess is None:
                    found[digest] = spec, screened.costs
    print(f"{len(found)} of {len(seen)} architectures are within the budgets", flush=True)
    return found


def jobs(
    space: Space, among: Among, seeds: Mapping[int, Split], known: set[tuple[str, int]]
) -> Iterator[Job]:
    """The trainings that are not in the table yet."""
    for number, (digest, (spec, _)) in enumerate(among.items()):
        for seed, split in seeds.items():
            if (digest, seed) not in known:
                yield Job(
                    number,
                    spec.model_dump(mode="json"),
                    [task.model_dump(mode="json") for task in space.file.tasks],
                    space.file.train.model_dump(mode="json"),
                    seed,
                    split,
                    "cpu",
                    str(HERE / "scratch" / str(number)),
                )


def row(space: Space, done: Done, digest: str, spec: ModelSpec, costs: dict[str, float]) -> dict:
    """What the table says of one training."""
    run = done.run["tasks"][space.file.tasks[0].name]
    return {
        "architecture": digest,
        "summary": spec.summary(),
        **costs,
        "seed": done.job.seed,
        "split": done.job.split,
        **{f"loss@{step}": round(loss, 5) for step, loss in run["rungs"]},
        "seconds": run["seconds"],
    }


def write(rows: list[dict], table: Path) -> None:
    """The table, its rows in an order of their own."""
    rows.sort(key=lambda row: (row["architecture"], int(row["seed"])))
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    write_atomic(table, "".join(",".join(quoted(cell) for cell in line) + "\n" for line in lines))


def quoted(cell: object) -> str:
    return f'"{cell}"' if "," in str(cell) else str(cell)


def fill(space: Space, among: Among, seeds: Mapping[int, Split], table: Path, workers: int) -> None:
    """Trains what is missing in a table."""
    rows = [*csv.DictReader(table.read_text().splitlines())] if table.exists() else []
    known = {(each["architecture"], int(each["seed"])) for each in rows}
    todo, digests = jobs(space, among, seeds, known), [*among]
    with Pool(workers) as pool:
        ahead = next(todo, None)
        while ahead is not None or pool.running:
            while ahead is not None and pool.has_room:
                pool.submit(ahead)
                ahead = next(todo, None)
            for message in pool.messages(1.0):
                if isinstance(message, Progress):
                    continue
                if not isinstance(message, Done):
                    raise SystemExit(f"{message.job.spec}: {message.cause}: {message.message}")
                digest = digests[message.job.number]
                rows.append(row(space, message, digest, *among[digest]))
                if len(rows) % 20 == 0:
                    write(rows, table)
                    print(f"{len(rows)} of {len(among) * len(seeds)}", flush=True)
    write(rows, table)


def main() -> None:
    """Every architecture of the space."""
    parser = argparse.ArgumentParser(description="train every architecture of the table")
    parser.add_argument("--workers", type=int, default=cores())
    space = load_space(HERE / "space.yaml")
    fill(space, architectures(space), SEEDS, TABLE, parser.parse_args().workers)


if __name__ == "__main__":
    main()
