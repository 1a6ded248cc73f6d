"""A small network looks at an image column by column, and a GRU says what it saw, looking back at every word."""

import torch
from torch import Tensor, nn

from cellport.cells import greedy
from examples.shapes.one_to_many import END, START

from .data import HEIGHT
from .numbers import MOST, WORDS

BLANK = 10
"""The label of a column that shows no digit, or still the one before."""


class Eye(nn.Module):
    """Features of every second column: convolutions, then a GRU over the columns in both directions.

    Args:
        channels: of the first convolution; the later ones have two and four times as many.
        features: of a column, of both directions together.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *_convolution(1, channels),
            *_convolution(channels, 2 * channels),
            nn.MaxPool2d(2),
            *_convolution(2 * channels, 4 * channels),
            nn.MaxPool2d((2, 1)),
            nn.Dropout(0.2),
        )
        self.columns = nn.GRU(4 * channels * (HEIGHT // 4), features // 2, batch_first=True, bidirectional=True)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [batch, HEIGHT, WIDTH] to features [batch, WIDTH / 2, features]."""
        seen = self.convolutions(image.unsqueeze(1))
        output: Tensor = self.columns(seen.flatten(1, 2).transpose(1, 2))[0]
        return output


class Reader(nn.Module):
    """Reads a row of digits as the words of its number.

    At every step the GRU is given the word before and what an attention (Bahdanau et al. 2014, arXiv 1409.0473, with
    the product of Luong et al. 2015 for a score) takes from the columns: their features, and which digit each shows.

    Args:
        channels: of the eye's first convolution.
        features: of a column.
        hidden: size of the GRU that writes the words.
    """

    def __init__(self, channels: int = 12, features: int = 128, hidden: int = 128) -> None:
        super().__init__()
        self.eye = Eye(channels, features)
        self.digit = nn.Linear(features, BLANK + 1)
        noted = features + BLANK + 1
        self.word, self.bridge = nn.Embedding(len(WORDS), hidden), nn.Linear(noted, hidden)
        self.query = nn.Linear(2 * hidden, noted)
        self.cell = nn.GRUCell(hidden + noted, hidden)
        self.out = nn.Linear(hidden + noted, len(WORDS))

    def note(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the attention reads [batch, WIDTH / 2, features + BLANK + 1], and scores of the digits in it."""
        features = self.eye(image)
        digits = self.digit(features)
        return torch.cat([features, digits.softmax(2)], 2), digits

    def begin(self, columns: Tensor) -> Tensor:
        """The state [batch, hidden] that the first word is written from."""
        return torch.tanh(self.bridge(columns.mean(1)))

    def step(self, state: Tensor, word: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The next state, and scores [batch, words] of what follows the word, int64 [batch]."""
        known = self.word(word)
        weights = torch.bmm(columns, self.query(torch.cat([state, known], 1)).unsqueeze(2)).softmax(1)
        seen = (weights * columns).sum(1)
        state = self.cell(torch.cat([known, seen], 1), state)
        return state, self.out(torch.cat([state, seen], 1))

    def taught(self, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """For training, with each step given the right word before it.

        Returns:
            Scores of the words [batch, MOST, words], and of the digit at each column [batch, WIDTH / 2, BLANK + 1].
        """
        columns, digits = self.note(image)
        state, given, scores = self.begin(columns), torch.full_like(words[:, 0], START), []
        for right in words.unbind(1):
            state, score = self.step(state, given, columns)
            scores.append(score)
            given = right
        return torch.stack(scores, 1), digits

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [batch, HEIGHT, WIDTH] to words int64 [batch, MOST] and how many are meant [batch]."""
        columns, _ = self.note(image)
        words, count, _ = greedy(self.step, self.begin(columns), START, end=END, max_steps=MOST, context=(columns,))
        return words, count


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
