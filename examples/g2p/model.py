"""The encoder-decoder in PyTorch: one step function, and the four forms of it that become files."""

import numpy as np
import torch
from torch import Tensor, nn

from cellport.cells import GRU, GRUCell, beam_search, greedy

from .data import END, MOST, START, Weights

_NAMES = {
    "enc_emb": "letters.weight",
    "enc_w_ih": "encoder.weight_ih_l0",
    "enc_w_hh": "encoder.weight_hh_l0",
    "enc_b_ih": "encoder.bias_ih_l0",
    "enc_b_hh": "encoder.bias_hh_l0",
    "dec_emb": "phonemes.weight",
    "dec_w_ih": "decoder.weight_ih",
    "dec_w_hh": "decoder.weight_hh",
    "dec_b_ih": "decoder.bias_ih",
    "dec_b_hh": "decoder.bias_hh",
    "fc_w": "out.weight",
    "fc_b": "out.bias",
}


class Pronouncer(nn.Module):
    """A GRU reads the letters, another writes the phonemes.

    Args:
        weights: the arrays of g2p_en's `checkpoint20.npz`.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        hidden, features = weights["enc_w_hh"].shape[1], weights["enc_w_ih"].shape[1]
        self.letters = nn.Embedding(*weights["enc_emb"].shape)
        self.encoder = GRU(features, hidden, batch_first=True)
        self.phonemes = nn.Embedding(*weights["dec_emb"].shape)
        self.decoder = GRUCell(features, hidden)
        self.out = nn.Linear(hidden, weights["fc_w"].shape[0])
        self.load_state_dict({_NAMES[name]: torch.from_numpy(np.array(array)) for name, array in weights.items()})
        self.eval()

    def encode(self, text: Tensor, lengths: Tensor) -> Tensor:
        """The state [batch, hidden] after the letters [batch, time]."""
        _, h = self.encoder(self.letters(text), lengths=lengths)
        return h[0]

    def step(self, h: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and the logits [batch, phonemes] after the phonemes [batch]."""
        output, h = self.decoder(self.phonemes(tokens), h)
        return h, self.out(output)


class Greedy(Pronouncer):
    """The likeliest phoneme at every step."""

    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Phonemes [batch, MOST] and how many [batch]."""
        phonemes, count, _ = greedy(self.step, self.encode(text, lengths), START, end=END, max_steps=MOST)
        return phonemes, count


class Beams(Pronouncer):
    """The best pronunciations of a beam search."""

    beams = 4
    length_penalty = 0.6

    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phonemes [batch, beams, MOST], best first, their scores and how many [batch, beams]."""
        return beam_search(
            self.step,
            self.encode(text, lengths),
            START,
            end=END,
            beams=self.beams,
            max_steps=MOST,
            length_penalty=self.length_penalty,
        )


class Encoder(Pronouncer):
    """The encoder alone, for a caller that writes phoneme by phoneme."""

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        """The state [batch, hidden] that the decoder starts with."""
        return self.encode(text, lengths)


class Step(Pronouncer):
    """One step of the decoder."""

    def forward(self, phoneme: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, phonemes] and the next state [batch, hidden]."""
        h, logits = self.step(h, phoneme)
        return logits, h
