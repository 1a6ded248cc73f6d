"""One input, a sequence as answer, as in captioning: a decoder starts from a feature and reads what it wrote itself."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from cellport.cells import greedy, recurrence

from .calls import advance, state_sizes

END, START = 0, 1
State = tuple[Tensor, ...]


class OneToMany(nn.Module):
    """Writes words about a feature vector.

    Args:
        features: of the input, such as an image network's last layer.
        words: size of the vocabulary, with `END` and `START` in it.
        hidden: size of the cell, and of the embedding of words.
        cell: the class of a step cell, such as `torch.nn.LSTMCell` or `cellport.cells.SRUCell`.
        feed: whether the feature becomes the first state, or the first input.
        most: words of an answer at most.
    """

    def __init__(
        self,
        features: int,
        words: int,
        hidden: int = 64,
        cell: Callable[..., nn.Module] = nn.LSTMCell,
        feed: Literal["state", "input"] = "state",
        most: int = 20,
    ) -> None:
        super().__init__()
        self.cell, self.feed, self.most = cell(hidden, hidden), feed, most
        self.feature, self.word = nn.Linear(features, hidden), nn.Embedding(words, hidden)
        self.head = nn.Linear(hidden, words)

    def begin(self, x: Tensor) -> State:
        """The state [batch, hidden] each that the first word is written from; an LSTM's memory starts at 0."""
        feature = torch.tanh(self.feature(x))
        zeros = (torch.zeros_like(feature),) * state_sizes(self.cell)
        return (feature, *zeros[1:]) if self.feed == "state" else advance(self.cell, feature, zeros)[1]

    def step(self, state: State, word: Tensor) -> tuple[State, Tensor]:
        """The next state, and scores [batch, words] of what follows the word, int64 [batch]."""
        output, state = advance(self.cell, self.word(word), state)
        return state, self.head(output)

    def taught(self, x: Tensor, words: Tensor) -> Tensor:
        """For training: scores [batch, time, words], with each step given the word [batch, time] that is right."""
        start = torch.full_like(words[:, :1], START)
        given = torch.cat([start, words[:, :-1]], 1).transpose(0, 1)
        scores, _ = recurrence(self.step, self.begin(x), given)
        return scores.transpose(0, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [batch, features] to words int64 [batch, most], and how many are meant [batch]."""
        words, count, _ = greedy(self.step, self.begin(x), START, end=END, max_steps=self.most)
        return words, count
