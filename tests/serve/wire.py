"""Short ways to make what the tests send."""

from typing import Any

import numpy as np
import tritonclient.grpc
from tritonclient.utils import np_to_triton_dtype


def triton_input(name: str, array: Any) -> tritonclient.grpc.InferInput:
    """Return an array as tritonclient sends it."""
    array = np.asarray(array)
    tensor = tritonclient.grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def tokens_of(length: int, seed: int, rows: int = 1) -> Any:
    """Return random tokens `[rows, length]` of the models' vocabulary."""
    return np.random.default_rng(seed).integers(0, 50, (rows, length))
