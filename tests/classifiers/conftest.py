"""What all tests of trainers share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The matrices are so small that threads which wait for each other cost more than they save; and sums of several
    threads round otherwise, so that a run here would not end as one in a process of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
