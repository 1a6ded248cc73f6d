"""A minGRU (Feng et al. 2024, arXiv 2410.01201) as a user writes it: one step function, run by `recurrence`."""

import torch
from torch import Tensor, nn

from cellport.cells import recurrence


class Speller(nn.Module):
    """Scores of the next character, for every character of a word."""

    def __init__(self, characters: int, features: int = 64, hidden: int = 192) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, features)
        self.gate, self.candidate = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.head = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, characters)
        )
        self.hidden = hidden

    def forward(self, tokens: Tensor, h: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map tokens [batch, time], a state [batch, hidden] and lengths [batch] to scores and the new state."""

        def step(h: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z, candidate = inputs
            h = (1 - z) * h + z * candidate
            return h, h

        x = self.embedding(tokens).transpose(0, 1)
        output, h = recurrence(step, h, (torch.sigmoid(self.gate(x)), self.candidate(x)), lengths=lengths)
        return self.head(output.transpose(0, 1)), h
