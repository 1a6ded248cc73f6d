"""Modules that people write around recurrent layers, small and with random weights, for `benchmarks/exporters.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cellport.cells import recurrence

FEATURES, HIDDEN, VOCABULARY, CLASSES = 6, 5, 29, 4


class Layer(nn.Module):
    """A recurrent layer alone, from its default state: its output and its final state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """Run the layer."""
        output, final = self.layer(features)
        return (output, *(final if isinstance(final, tuple) else (final,)))


class LayerFrom(Layer):
    """The same from a given state of one tensor."""

    def forward(self, features: Tensor, h: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Run the layer."""
        return self.layer(features, h)


class LayerFromTwo(Layer):
    """The same from a given state of two tensors."""

    def forward(self, features: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Run the layer."""
        output, (h, c) = self.layer(features, (h, c))
        return output, h, c


class WithLengths(nn.Module):
    """One of cellport's cells with lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The output, 0 in the padding."""
        return self.layer(features, lengths=lengths)[0]


class Step(nn.Module):
    """One step of a single-step cell, run by its caller."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """The new state."""
        return self.cell(x, h)


class StepOfTwo(Step):
    """The same with a state of two tensors."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The new state."""
        return self.cell(x, (h, c))


class Looped(nn.Module):
    """A Python loop over time around a single-step cell, its outputs in a list."""

    def __init__(self, cell: nn.Module, *, both: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.both = cell, nn.Linear(HIDDEN, HIDDEN), both

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs and the last state."""
        h = x.new_zeros(x.size(0), HIDDEN)
        state = (h, h) if self.both else h
        rows = []
        for t in range(x.size(1)):
            state = self.cell(x[:, t], state)
            h = state[0] if self.both else state
            rows.append(self.head(h))
        return torch.stack(rows, 1), h


class Written(nn.Module):
    """The same, backward, its outputs written into one tensor."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """The outputs."""
        h, rows = None, torch.empty(x.size(0), x.size(1), HIDDEN)
        for t in reversed(range(x.size(1))):
            h = self.cell(x[:, t], h)
            rows[:, t] = h
        return rows


class Packed(nn.Module):
    """A layer over a packed sequence: the padded output and the final state."""

    def __init__(self, layer: nn.Module, *, sorts: bool = False, padding: float = 0.0) -> None:
        super().__init__()
        self.layer, self.sorts, self.padding = layer, sorts, padding

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Pack, run, pad."""
        packed = pack_padded_sequence(features, lengths.cpu(), batch_first=True, enforce_sorted=self.sorts)
        output, final = self.layer(packed)
        padded, _ = pad_packed_sequence(output, batch_first=True, padding_value=self.padding)
        return padded, final[0] if isinstance(final, tuple) else final


class Tokens(nn.Module):
    """Token ids through an embedding and a batch-first layer; `read` makes the answer of its output and state."""

    def __init__(self, layer: nn.Module, read: Callable[[nn.Module, Tensor, Any], Any], width: int = HIDDEN) -> None:
        super().__init__()
        self.embedding, self.layer, self.read = nn.Embedding(VOCABULARY, FEATURES), layer, read
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Any:
        """Embed, run, read."""
        output, state = self.layer(self.embedding(tokens))
        return self.read(self.head, output, state)


def tag(head: nn.Module, output: Tensor, _: Any) -> Tensor:
    """Scores of every token."""
    return head(output)


def classify(head: nn.Module, _: Tensor, state: Any) -> Tensor:
    """Scores from the final state of the last layer."""
    final = state[0] if isinstance(state, tuple) else state
    return head(final[-1])


def classify_both(head: nn.Module, _: Tensor, state: Any) -> Tensor:
    """Scores from the final states of both directions."""
    final = state[0] if isinstance(state, tuple) else state
    return head(torch.cat([final[-2], final[-1]], 1))


def last_step(head: nn.Module, output: Tensor, _: Any) -> Tensor:
    """Scores of the last step."""
    return head(output[:, -1])


def maximum(head: nn.Module, output: Tensor, _: Any) -> Tensor:
    """Scores of the maximum over time."""
    return head(output.max(1).values)


def attend(head: nn.Module, output: Tensor, _: Any) -> Tensor:
    """Scores of an attention over time with the last step as the query."""
    weights = torch.softmax(output @ output[:, -1:].transpose(1, 2), 1)
    return head((weights * output).sum(1))


class OwnZeros(nn.Module):
    """Makes its initial state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """Zeros of the input's batch size."""
        h, c = (torch.zeros(2, features.size(0), HIDDEN) for _ in range(2))
        return self.lstm(features, (h, c))[0]


class Learned(nn.Module):
    """Starts from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.first = nn.Parameter(torch.randn(1, 1, HIDDEN))

    def forward(self, features: Tensor) -> Tensor:
        """The same state for every row."""
        return self.gru(features, self.first.expand(-1, features.shape[0], -1).contiguous())[0]


class ConvolutionalRecurrent(nn.Module):
    """Convolutions over time in front of a bidirectional GRU, as in speech and in reading text."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(FEATURES, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.gru = nn.GRU(8, HIDDEN, 2, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities of each step."""
        x = torch.relu(self.norm(self.convolution(features.transpose(1, 2)))).transpose(1, 2)
        return torch.log_softmax(self.gru(x)[0], -1)


class Residual(nn.Module):
    """Normalised layers with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(FEATURES) for _ in range(3))
        self.layers = nn.ModuleList(nn.LSTM(FEATURES, FEATURES, batch_first=True) for _ in range(3))

    def forward(self, features: Tensor) -> Tensor:
        """Three blocks."""
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features = features + layer(norm(features))[0]
        return features


class LanguageModel(nn.Module):
    """A language model with tied weights that takes and returns its state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, 2, batch_first=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Scores of the next token."""
        output, state = self.lstm(self.embedding(tokens), state)
        return self.head(output), state


class EncoderDecoder(nn.Module):
    """Teacher-forced translation: two time axes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.encoder = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.decoder = nn.GRU(FEATURES, HIDDEN, batch_first=True)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The decoder's outputs."""
        _, state = self.encoder(self.embedding(tokens))
        return self.decoder(self.embedding(targets), state)[0]


class Siamese(nn.Module):
    """One encoder called on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """The distance of the two final states."""
        return (self.encoder(left)[1][0][-1] - self.encoder(right)[1][0][-1]).abs().sum(-1)


class Hierarchical(nn.Module):
    """A layer over the characters of each word inside a layer over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.characters = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.words = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs for each word of tokens [batch, words, characters]."""
        batch, words, characters = tokens.shape
        _, state = self.characters(self.embedding(tokens).reshape(batch * words, characters, FEATURES))
        return self.words(state[-1].reshape(batch, words, HIDDEN))[0]


class Bridged(nn.Module):
    """A bidirectional encoder whose final states start a decoder over the same steps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * HIDDEN, HIDDEN)
        self.decoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """The decoder's outputs."""
        _, states = self.encoder(features)
        start = tuple(self.bridge(torch.cat([s[0], s[1]], 1)).unsqueeze(0) for s in states)
        return self.decoder(features, start)[0]


class Shifted(nn.Module):
    """A layer over the inputs of one step before."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, HIDDEN, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        """Pad at the front and cut at the end."""
        return self.rnn(pad(features, (0, 0, 1, 0))[:, :-1])[0]


class MinGRU(nn.Module):
    """minGRU (Feng et al. 2024, arXiv 2410.01201), a user's own cell."""

    def __init__(self, *, reverse: bool = False) -> None:
        super().__init__()
        self.gate, self.candidate, self.reverse = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN), reverse

    def forward(self, features: Tensor) -> Tensor:
        """[time, batch, features] to [time, batch, hidden]."""

        def step(h: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            z, n = inputs
            h = (1 - z) * h + z * n
            return h, h

        inputs = torch.sigmoid(self.gate(features)), self.candidate(features)
        first = features.new_zeros(features.shape[1], HIDDEN)
        return recurrence(step, first, inputs, reverse=self.reverse)[0]


class Moments(NamedTuple):
    """A running mean and mean square."""

    mean: Tensor
    square: Tensor


class Normalised(nn.Module):
    """A user's own cell with a named tuple as its state, given and returned."""

    def forward(self, features: Tensor, state: Moments) -> tuple[Tensor, Moments]:
        """Each step less the running mean, over the running deviation."""

        def step(state: Moments, x: Tensor) -> tuple[Moments, Tensor]:
            mean = 0.9 * state.mean + 0.1 * x
            square = 0.9 * state.square + 0.1 * x * x
            return Moments(mean, square), (x - mean) * torch.rsqrt((square - mean * mean).abs() + 1e-2)

        return recurrence(step, state, features)


class Independent(nn.Module):
    """IndRNN (Li et al. 2018, arXiv 1803.04831), a user's own cell with lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.recurrent = nn.Linear(FEATURES, HIDDEN), nn.Parameter(torch.rand(HIDDEN))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and the state after each row's last valid step."""

        def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(x + self.recurrent * h)
            return h, h

        first = features.new_zeros(features.shape[1], HIDDEN)
        return recurrence(step, first, self.input(features), lengths=lengths)
