"""Parameters of the single-step cells, with torch.nn's names, order and initialisation."""

import math

import torch
from torch import nn

__all__ = ["draw_parameter", "step_parameters"]


def step_parameters(
    input_size: int,
    hidden_size: int,
    rows: int,
    bias: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None, nn.Parameter | None]:
    """weight_ih [rows, input_size], weight_hh [rows, hidden_size], bias_ih [rows] and bias_hh [rows] or None."""

    def draw(*shape: int) -> nn.Parameter:
        return draw_parameter(hidden_size, shape, device, dtype)

    weights = draw(rows, input_size), draw(rows, hidden_size)
    return (*weights, draw(rows), draw(rows)) if bias else (*weights, None, None)


def draw_parameter(
    hidden_size: int, shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter:
    """A parameter drawn from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size))."""
    bound = 1 / math.sqrt(hidden_size)
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound))
