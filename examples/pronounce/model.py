"""The shape many-to-many, unaligned, with an attention over what the encoder read, and the three files made of it."""

import torch
from torch import Tensor, nn

from cellport.cells import greedy
from examples.shapes.calls import over_time, summary

from .data import END, LETTERS, MOST, PHONEMES, START


class Pronouncer(nn.Module):
    """A bidirectional GRU reads the letters, another GRU writes the phonemes and looks back at the letters.

    The attention is the multiplicative one of Luong et al. 2015 (arXiv 1508.04025, "general"), after the recurrence: a
    whole word can be taught in one call of the layer, and the step's state is h alone.

    Args:
        features: of the embeddings.
        hidden: size of the decoder, and of both directions of the encoder together.
    """

    def __init__(self, features: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.letter, self.phoneme = nn.Embedding(len(LETTERS), features), nn.Embedding(len(PHONEMES), features)
        self.encoder = nn.GRU(features, hidden // 2, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(hidden, hidden)
        self.decoder = nn.GRU(features, hidden, batch_first=True)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.mix, self.out = nn.Linear(2 * hidden, hidden), nn.Linear(hidden, len(PHONEMES))
        # One step of the decoder, with the same parameters.
        self.cell = nn.GRUCell(features, hidden)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(self.decoder, f"{name}_l0"))

    def read(self, letters: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The decoder's first state h [batch, hidden], and the memory [batch, time, hidden] that it looks at.

        The map from the encoder's two directions: h = tanh(W [forward's last; backward's first] + b).

        Args:
            letters: int64 [batch, time].
            lengths: int64 [batch], at least 1; None where no row is padded.
        """
        memory = over_time(self.encoder, self.letter(letters), lengths)
        steps = letters.new_full(letters.shape[:1], letters.shape[1]) if lengths is None else lengths
        return torch.tanh(self.bridge(summary(memory, steps, bidirectional=True))), memory

    def look(self, output: Tensor, memory: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scores [batch, steps, phonemes] from the decoder's output [batch, steps, hidden] and the memory."""
        weights = torch.bmm(self.query(output), memory.transpose(1, 2))
        if valid is not None:
            weights = weights.masked_fill(~valid.unsqueeze(1), float("-inf"))
        seen = torch.bmm(weights.softmax(2), memory)
        return self.out(torch.tanh(self.mix(torch.cat([output, seen], 2))))

    def write(self, phonemes: Tensor, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of what follows each of the phonemes int64 [batch, steps], and the next state."""
        output, h = self.decoder(self.phoneme(phonemes), h.unsqueeze(0))
        return self.look(output, memory), h.squeeze(0)

    def step(self, h: Tensor, phoneme: Tensor, memory: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """One step for rows that are padded: the next state, and scores of what follows the phoneme [batch]."""
        h = self.cell(self.phoneme(phoneme), h)
        return h, self.look(h.unsqueeze(1), memory, valid).squeeze(1)

    def taught(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        """For training: scores [batch, steps, phonemes], with each step given the right phoneme before it."""
        start = torch.full_like(phonemes[:, :1], START)
        return self.write(torch.cat([start, phonemes[:, :-1]], 1), *self.read(letters))[0]


class Speaker(nn.Module):
    """Whole words: letters in, phonemes out, with the loop inside."""

    def __init__(self, model: Pronouncer) -> None:
        super().__init__()
        self.model = model

    def forward(self, letters: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map letters int64 [batch, time] and lengths [batch] to phonemes [batch, MOST] and how many [batch]."""
        h, memory = self.model.read(letters, lengths)
        valid = torch.arange(letters.shape[1]) < lengths.unsqueeze(1)
        phonemes, count, _ = greedy(self.model.step, h, START, end=END, max_steps=MOST, context=(memory, valid))
        return phonemes, count


class Encoder(nn.Module):
    """What a sequence of steps starts from."""

    def __init__(self, model: Pronouncer) -> None:
        super().__init__()
        self.model = model

    def forward(self, letters: Tensor) -> tuple[Tensor, Tensor]:
        """Map the letters of words of one length, int64 [batch, time], to h and the memory."""
        return self.model.read(letters)


class Step(nn.Module):
    """Phoneme by phoneme: h and the memory are states, which a server keeps from the start of a sequence."""

    def __init__(self, model: Pronouncer) -> None:
        super().__init__()
        self.model = model

    def forward(self, phonemes: Tensor, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map phonemes int64 [batch, time] to scores [batch, time, phonemes]; the memory stays as it is."""
        scores, h = self.model.write(phonemes, h, memory)
        return scores, h, memory
