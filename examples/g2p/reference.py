"""The same network in NumPy, one word at a time: the equations of g2p_en 2.1.0 (Apache-2.0), g2p.py, class G2p."""

from typing import Any

import numpy as np

from .data import END, MOST, START, Weights, letters

Array = np.ndarray[Any, Any]


class Reference:
    """What `G2p.predict` computes, in the precision of the weights.

    Args:
        weights: the arrays of `checkpoint20.npz`.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def predict(self, word: str) -> list[int]:
        """The phonemes of a word, without the end token."""
        h = np.zeros((1, self.weights["enc_w_hh"].shape[1]), self.weights["enc_w_hh"].dtype)
        for letter in letters(word):
            h = self._cell(self.weights["enc_emb"][[letter]], h, "enc")
        phonemes: list[int] = []
        token = START
        for _ in range(MOST):
            h = self._cell(self.weights["dec_emb"][[token]], h, "dec")
            token = int((h @ self.weights["fc_w"].T + self.weights["fc_b"]).argmax())
            if token == END:
                break
            phonemes.append(token)
        return phonemes

    def _cell(self, x: Array, h: Array, side: str) -> Array:
        """GRU: r, z = s(W_ih x + b_ih + W_hh h + b_hh); n = tanh(... + r * ...); h' = (1 - z) * n + z * h."""
        w_ih, w_hh, b_ih, b_hh = (self.weights[f"{side}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
        r_x, z_x, n_x = np.split(x @ w_ih.T + b_ih, 3, 1)
        r_h, z_h, n_h = np.split(h @ w_hh.T + b_hh, 3, 1)
        r, z = _sigmoid(r_x + r_h), _sigmoid(z_x + z_h)
        n = np.tanh(n_x + r * n_h)
        new: Array = (1 - z) * n + z * h
        return new


def _sigmoid(x: Array) -> Array:
    value: Array = 1 / (1 + np.exp(-x))
    return value
