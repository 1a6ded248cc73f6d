"""The language identifier: trigrams, an embedding, a two-layer SRU, and a guess after every step."""

import torch
from torch import Tensor, nn

from cellport.cells import SRU
from cellport.export import ExportSpec

from .data import BUCKETS, CODES


class LanguageIdentifier(nn.Module):
    """Guesses the language of a text while it is being read.

    Args:
        buckets: how many buckets trigrams are hashed into.
        embedding: features of a bucket.
        hidden: hidden size of each of the two layers.
    """

    def __init__(self, buckets: int = BUCKETS, embedding: int = 128, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(buckets, embedding)
        # Small rows keep the gates out of saturation at the start: it learns faster than from torch's N(0, 1).
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.sru = SRU(embedding, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, len(CODES))

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score the languages.

        Args:
            tokens: int64 [batch, time].
            lengths: int64 [batch], the steps of each text; a negative one for all of `time`, as the cells have it.

        Returns:
            The guess after every step, [batch, time, languages], and the answer after the last, [batch, languages],
            as unnormalised log-probabilities.
        """
        output, _ = self.sru(self.embedding(tokens), lengths=lengths)
        guesses = self.head(output)
        steps = torch.where(lengths < 0, tokens.shape[1], lengths)
        last = (steps - 1).clamp(min=0)  # a text of no steps gets the head's bias
        answer = guesses.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, guesses.shape[2]))
        return guesses, answer.squeeze(1)


def factory() -> ExportSpec:
    """What `cellport export examples.language_id.model:factory` exports."""
    return ExportSpec(
        model=LanguageIdentifier(),
        args=(torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 2])),
        input_names=["tokens", "lengths"],
        output_names=["guesses", "answer"],
        dynamic_shapes={"tokens": {0: "batch", 1: "time"}, "lengths": {0: "batch"}},
    )
