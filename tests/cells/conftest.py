import pytest
import torch

from .cases import CASES, Case


@pytest.fixture(autouse=True)
def two_threads():
    """Tests share a small machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Every cell with its options."""
    return request.param
