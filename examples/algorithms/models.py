"""A Grid LSTM in one dimension for parity; one over time and depth, and a stacked LSTM, for sums."""

from typing import Literal

from torch import Tensor, nn

from cellport.cells import LSTM, GridLSTM

from .tasks import BITS, NO_DIGIT

__all__ = ["Adder", "Parity", "parameters", "stacked_like"]

FEATURES = 32


class Parity(nn.Module):
    """All bits enter one vector; the same block is then applied again and again.

    Args:
        hidden: features of h and of m.
        layers: how often.
    """

    def __init__(self, hidden: int = 64, layers: int = 20) -> None:
        super().__init__()
        self.grid = GridLSTM(BITS, hidden, layers, dimensions=1, tied=True)
        self.head = nn.Linear(hidden, 2)

    def forward(self, bits: Tensor) -> Tensor:
        """Scores of even and odd, [batch, 2], of bits -1 and 1, [batch, BITS]."""
        scores: Tensor = self.head(self.grid(bits)[0])
        return scores


class Adder(nn.Module):
    """Reads two digits a step, and answers with a digit a step.

    Args:
        kind: a tied Grid LSTM over time and depth, or a stacked LSTM.
        hidden: features of h and of m.
        layers: size along depth.
    """

    def __init__(self, kind: Literal["grid", "stacked"] = "grid", hidden: int = 48, layers: int = 4) -> None:
        super().__init__()
        self.first = nn.Embedding(NO_DIGIT + 1, FEATURES)
        self.second = nn.Embedding(NO_DIGIT + 1, FEATURES)
        self.cell: nn.Module
        if kind == "grid":
            self.cell = GridLSTM(FEATURES, hidden, layers, tied=True, batch_first=True)
        else:
            self.cell = LSTM(FEATURES, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, digits: Tensor) -> Tensor:
        """Scores of the digits 0 to 9 at every step, [batch, time, 10], of digits [batch, time, 2]."""
        read = self.first(digits[..., 0]) + self.second(digits[..., 1])
        scores: Tensor = self.head(self.cell(read)[0])
        return scores


def parameters(model: nn.Module) -> int:
    """How many numbers a model has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def stacked_like(model: nn.Module, layers: int = 2) -> Adder:
    """A stacked LSTM with the number of parameters that is nearest to a model's."""
    wanted = parameters(model)
    sizes = {hidden: parameters(Adder("stacked", hidden, layers)) for hidden in range(8, 256, 2)}
    return Adder("stacked", min(sizes, key=lambda hidden: abs(sizes[hidden] - wanted)), layers)
