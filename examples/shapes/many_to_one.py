"""A sequence, one answer, as in the sentiment of a text: read to the end, in one direction or both, then decide."""

from collections.abc import Callable

from torch import Tensor, nn

from .calls import over_time, summary


class ManyToOne(nn.Module):
    """Classifies sequences of tokens.

    Args:
        tokens: size of the vocabulary.
        classes: of the answer.
        hidden: size of the cell in each direction, and of the embedding of tokens.
        cell: the class of a sequence cell, such as `torch.nn.LSTM` or `cellport.cells.SRU`.
        bidirectional: whether the sequence is also read from its last valid step to its first.
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        hidden: int = 64,
        cell: Callable[..., nn.Module] = nn.LSTM,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.token = nn.Embedding(tokens, hidden)
        self.cell = cell(hidden, hidden, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Map tokens int64 [batch, time] and their lengths [batch], at least 1, to scores [batch, classes]."""
        output = over_time(self.cell, self.token(tokens), lengths)
        return self.head(summary(output, lengths, self.bidirectional))
