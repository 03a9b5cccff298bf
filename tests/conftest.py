"""One thread, seeded, and uninitialised memory filled with NaN: what is not written shows."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _strict_torch() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN, too
    yield
    torch.use_deterministic_algorithms(False)
