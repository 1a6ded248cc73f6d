"""The memory cells of a multi-dimensional LSTM: which gates each has, and how they make the new memory.

With s_d the memory of the predecessor along dimension d, of N, i to o logistic gates and g = tanh(a_g):

    standard     s = i g + sum_d f_d s_d                                    h = o tanh(s)
    halved       s = i g + (sum_d f_d s_d) / N                              h = o tanh(s)
    stable       s = i g + f m                                              h = o tanh(s)
    leaky        s = (1 - f) g + f m                                        h = o tanh(s), or o s
    leaky_lp     s = (1 - f) g + f m                                        h = tanh(o_1 s + o_0 m)
    ratio_leaky  s = i g + (1 - i) (sum_d f_d s_d) / (sum_d f_d)            h = o tanh(s)

m = sum_d lambda_d s_d, where lambda is the softmax of N - 1 blocks and of 0: for N = 2 that is lambda_1 = sigmoid of
the one block and lambda_2 = 1 - lambda_1, as published; for N = 1, m = s_1. A predecessor outside of the grid counts as
0 and takes its share of lambda all the same.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MEMORY_CELLS", "MemoryCell", "MemoryForm"]

MemoryCell = Literal["standard", "halved", "stable", "leaky", "leaky_lp", "ratio_leaky"]
MEMORY_CELLS: tuple[str, ...] = get_args(MemoryCell)
GATE_PER_DIMENSION = ("standard", "halved", "ratio_leaky")


class MemoryForm:
    """One of the cells above for a number of dimensions.

    Args:
        cell: which.
        dimensions: N.
        hidden_size: features of a state, H.
        tanh_output: whether h takes the tanh of s.

    Attributes:
        blocks: the blocks of H rows that the parameters have, in order.
        order: the blocks in the order that a step takes them: logistic gates, g, and the logits of a softmax.
    """

    def __init__(self, cell: MemoryCell, dimensions: int, hidden_size: int, tanh_output: bool = True) -> None:
        self.cell, self.dimensions, self.hidden_size, self.tanh_output = cell, dimensions, hidden_size, tanh_output
        shares = tuple(f"lambda_{d}" for d in range(1, dimensions))
        if cell in GATE_PER_DIMENSION:
            self.blocks: tuple[str, ...] = ("i", *(f"f_{d}" for d in range(1, dimensions + 1)), "g", "o")
        elif cell == "stable":
            self.blocks = ("i", "f", "g", "o", *shares)
        elif cell == "leaky":
            self.blocks = ("f", "g", "o", *shares)
        else:
            self.blocks = ("f", *shares, "g", "o_1", "o_0")
        # The sigmoid of one share is what its softmax with 0 is.
        logits = shares if dimensions > 2 and cell not in GATE_PER_DIMENSION else ()
        outputs = tuple(block for block in self.blocks if block.startswith("o"))
        gates = tuple(block for block in self.blocks if block not in ("g", *outputs, *logits))
        self.order = (*gates, *outputs, "g", *logits)
        self._gates, self._outputs, self._logits = gates, outputs, logits

    def ordered(self, rows: Tensor, axis: int) -> Tensor:
        """Rows of the parameters [..., blocks * H, ...] in the order of a step."""
        if self.order == self.blocks:
            return rows
        starts = [self.blocks.index(name) * self.hidden_size for name in self.order]
        return torch.cat([rows.narrow(axis, start, self.hidden_size) for start in starts], axis)

    def __call__(self, a: Tensor, s: Sequence[Tensor], peepholes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The new output h and memory s.

        Args:
            a: [..., blocks * H] before the gates' functions, in the order of a step.
            s: the predecessors' memory, [..., H] each.
            peepholes: [2 N + 1, ..., H] for i from each s_d, for each f_d from s_d, and for o from the new s; None
                without.
        """
        hidden, count = self.hidden_size, len(self._gates)
        outputs = len(self._outputs)
        if peepholes is None:
            if torch.compiler.is_exporting():
                # A file splits once, for splits copy; training calls as few functions as it can.
                parts = torch.split(a, hidden, -1)
                g, *logits = parts[count + outputs :]
                open_by = [torch.sigmoid(each) for each in parts[: count + outputs]]
            else:
                both, g, *logits = torch.split(a, [(count + outputs) * hidden, *[hidden] * (1 + len(self._logits))], -1)
                open_by = list(torch.split(torch.sigmoid(both), hidden, -1))
            named = dict(zip(self.order, open_by, strict=False))
        else:
            gates, output, g, *logits = torch.split(a, [count * hidden, hidden, hidden], -1)
            seen = [each * w for each, w in zip(s, peepholes[: len(s)], strict=True)]
            forget = [each * w for each, w in zip(s, peepholes[len(s) : -1], strict=True)]
            gates = gates + torch.cat([_total(seen), *forget], -1)
            named = dict(zip(self._gates, torch.split(torch.sigmoid(gates), hidden, -1), strict=True))
        new, mixed = self._memory(named, torch.tanh(g), s, logits)
        if self.cell == "leaky_lp":
            return torch.tanh(named["o_1"] * new + named["o_0"] * mixed), new
        o = named["o"] if peepholes is None else torch.sigmoid(output + peepholes[-1] * new)
        return o * (torch.tanh(new) if self.tanh_output else new), new

    def _memory(
        self, gate: dict[str, Tensor], g: Tensor, s: Sequence[Tensor], logits: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The new memory, and what the predecessors' memory is together."""
        if self.cell in GATE_PER_DIMENSION:
            forget = [gate[f"f_{d}"] for d in range(1, len(s) + 1)]
            kept = _total([f * each for f, each in zip(forget, s, strict=True)])
            if self.cell == "standard":
                return gate["i"] * g + kept, kept
            if self.cell == "halved":
                return gate["i"] * g + kept / len(s), kept
            # Where all gates underflow, so does what they keep.
            kept = kept / _total(forget).clamp(min=torch.finfo(g.dtype).tiny)
            return _between(kept, g, gate["i"]), kept
        mixed = self._mixed(gate, s, logits)
        if self.cell == "stable":
            return gate["i"] * g + gate["f"] * mixed, mixed
        return _between(g, mixed, gate["f"]), mixed

    def _mixed(self, gate: dict[str, Tensor], s: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        if len(s) == 1:
            return s[0]
        if len(s) == 2:
            return _between(s[1], s[0], gate["lambda_1"])
        shares = torch.softmax(F.pad(torch.stack(list(logits), -1), (0, 1)), -1)
        return (shares * torch.stack(list(s), -1)).sum(-1)


def _between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """(1 - share) * first + share * second; torch.lerp exports as twice the operators."""
    return first + share * (second - first)


def _total(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for each in tensors[1:]:
        total = total + each
    return total
