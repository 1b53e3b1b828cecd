"""What every test runs under: one thread, so that sums have one order and two tests share two cores."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
