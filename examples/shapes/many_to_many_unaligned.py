"""A sequence, and one of another length as answer, as in translation: an encoder reads, then a decoder writes."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from cellport.cells import greedy, recurrence

from .calls import advance, over_time, state_sizes, summary

END, START = 0, 1
State = tuple[Tensor, ...]


class ManyToManyUnaligned(nn.Module):
    """Reads tokens in both directions and writes words.

    The encoder ends with 2 · hidden features and the decoder starts from `hidden`. The map between them is written out:
    a projection, tanh(W [forward's last; backward's first] + b), with weights of its own for each tensor of the
    decoder's state, or the sum of the two directions (an LSTM's memory then starts at 0).

    Args:
        tokens: size of the vocabulary that is read.
        words: size of the one that is written, with `END` and `START` in it.
        hidden: size of the cells, and of the embeddings.
        encoder: the class of a sequence cell, such as `torch.nn.LSTM` or `cellport.cells.SRU`.
        decoder: the class of a step cell, such as `torch.nn.LSTMCell` or `cellport.cells.SRUCell`.
        bridge: the map from the encoder's end to the decoder's start.
        most: words of an answer at most.
    """

    def __init__(
        self,
        tokens: int,
        words: int,
        hidden: int = 64,
        encoder: Callable[..., nn.Module] = nn.LSTM,
        decoder: Callable[..., nn.Module] = nn.LSTMCell,
        bridge: Literal["projection", "sum"] = "projection",
        most: int = 20,
    ) -> None:
        super().__init__()
        self.token, self.word = nn.Embedding(tokens, hidden), nn.Embedding(words, hidden)
        self.encoder = encoder(hidden, hidden, batch_first=True, bidirectional=True)
        self.decoder, self.most = decoder(hidden, hidden), most
        maps = [nn.Linear(2 * hidden, hidden) for _ in range(state_sizes(self.decoder))]
        self.bridge = nn.ModuleList(maps if bridge == "projection" else [])
        self.head = nn.Linear(hidden, words)

    def begin(self, tokens: Tensor, lengths: Tensor) -> State:
        """The decoder's first state [batch, hidden] each, from tokens int64 [batch, time] and lengths [batch]."""
        read = summary(over_time(self.encoder, self.token(tokens), lengths), lengths, bidirectional=True)
        if self.bridge:
            return tuple(torch.tanh(each(read)) for each in self.bridge)
        forward, backward = read.chunk(2, 1)
        return (forward + backward, *(torch.zeros_like(forward),) * (state_sizes(self.decoder) - 1))

    def step(self, state: State, word: Tensor) -> tuple[State, Tensor]:
        """The next state, and scores [batch, words] of what follows the word, int64 [batch]."""
        output, state = advance(self.decoder, self.word(word), state)
        return state, self.head(output)

    def taught(self, tokens: Tensor, lengths: Tensor, words: Tensor) -> Tensor:
        """For training: scores [batch, steps, words], with each step given the word [batch, steps] that is right."""
        start = torch.full_like(words[:, :1], START)
        given = torch.cat([start, words[:, :-1]], 1).transpose(0, 1)
        scores, _ = recurrence(self.step, self.begin(tokens, lengths), given)
        return scores.transpose(0, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens int64 [batch, time] and lengths [batch] to words int64 [batch, most] and their count [batch]."""
        words, count, _ = greedy(self.step, self.begin(tokens, lengths), START, end=END, max_steps=self.most)
        return words, count
