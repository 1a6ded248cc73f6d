import importlib.util
import shutil
import warnings

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


@pytest.fixture(scope="session")
def package():
    """The package `sru`, which compiles its kernel with g++ when it is first imported; that takes a minute."""
    if importlib.util.find_spec("sru") is None:
        pytest.skip("the sru package is not installed")
    if shutil.which("g++") is None:
        pytest.skip("the sru package compiles its kernel with g++, not found")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sru", reason="the sru package could not build its kernel", exc_type=Exception)
