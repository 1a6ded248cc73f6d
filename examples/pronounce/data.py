"""Words of cmudict: letters to read, phonemes to say, and how far an answer is from the dictionary."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from examples.g2p.data import dictionary

LETTERS = ["<pad>", "'", *"abcdefghijklmnopqrstuvwxyz"]
PHONEMES = [
    *("<end>", "<start>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2"),
    *("AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2"),
    *("EY0", "EY1", "EY2", "F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG"),
    *("OW0", "OW1", "OW2", "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2"),
    *("UW0", "UW1", "UW2", "V", "W", "Y", "Z", "ZH"),
]
"""ARPAbet; the digit of a vowel is its stress."""
END, START = 0, 1
MOST = 29
"""Phonemes of a word at most, with the end."""
_LETTER = {letter: index for index, letter in enumerate(LETTERS)}
_PHONEME = {phoneme: index for index, phoneme in enumerate(PHONEMES)}


def split(seed: int = 0) -> tuple[list[str], list[str]]:
    """Words to train on, and a tenth that is held out; words of other characters than letters and ' are left out."""
    words = [word for word in sorted(dictionary()) if all(letter in _LETTER for letter in word)]
    order = np.random.default_rng(seed).permutation(len(words))
    held_out = len(words) // 10
    return [words[i] for i in order[held_out:]], [words[i] for i in order[:held_out]]


def read(words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Letters int64 [words, time], padded, and lengths int64 [words]."""
    lengths = torch.tensor([len(word) for word in words])
    letters = torch.zeros(len(words), int(lengths.max()), dtype=torch.long)
    for row, word in zip(letters, words, strict=True):
        row[: len(word)] = torch.tensor([_LETTER[letter] for letter in word])
    return letters, lengths


def said(phonemes: Sequence[int]) -> list[str]:
    """The names of phonemes up to the end."""
    found = [int(phoneme) for phoneme in phonemes]
    return [PHONEMES[phoneme] for phoneme in found[: found.index(END) if END in found else None]]


class Batch(NamedTuple):
    """Words with equally many letters.

    Attributes:
        letters: int64 [words, time].
        phonemes: int64 [words, steps]; each row its phonemes and at least one `END`.
        valid: bool [words, steps], up to the first end.
    """

    letters: Tensor
    phonemes: Tensor
    valid: Tensor


def batches(words: Sequence[str], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Every pronunciation of every word once, in random order; words of a batch are about equally long."""
    found: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
    for word in words:
        for phonemes in dictionary()[word]:
            found[len(word)].append((word, [*(_PHONEME[phoneme] for phoneme in phonemes), END]))
    parts = []
    for pairs in found.values():
        order = np.lexsort((rng.random(len(pairs)), [len(phonemes) for _, phonemes in pairs]))
        parts += [[pairs[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    for index in rng.permutation(len(parts)):
        lengths = torch.tensor([len(phonemes) for _, phonemes in parts[index]])
        said = torch.full((len(lengths), int(lengths.max())), END)
        for row, (_, phonemes) in zip(said, parts[index], strict=True):
            row[: len(phonemes)] = torch.tensor(phonemes)
        letters, _ = read([word for word, _ in parts[index]])
        yield Batch(letters, said, torch.arange(said.shape[1]) < lengths.unsqueeze(1))


class Errors(NamedTuple):
    """How far answers are from the dictionary, where each word counts with its closest pronunciation.

    Attributes:
        phonemes: insertions, deletions and substitutions, a phoneme of the dictionary.
        unstressed: the same, where the stress of a vowel does not matter.
        words: the part of the words that are not as the dictionary has them, stress and all.
    """

    phonemes: float
    unstressed: float
    words: float

    def __str__(self) -> str:
        return (
            f"{self.phonemes:.2%} of phonemes wrong ({self.unstressed:.2%} without stress), "
            f"{self.words:.2%} of words not exact"
        )


def errors(words: Sequence[str], answers: Sequence[list[str]]) -> Errors:
    """Compare the names of phonemes of each word with the dictionary's."""
    rates = []
    for strip in ("", "012"):
        wrong = total = inexact = 0
        for word, answer in zip(words, answers, strict=True):
            wanted = [[phoneme.rstrip(strip) for phoneme in each] for each in dictionary()[word]]
            found = [phoneme.rstrip(strip) for phoneme in answer]
            nearest, size = min(
                ((distance(found, each), len(each)) for each in wanted), key=lambda pair: pair[0] / pair[1]
            )
            wrong, total, inexact = wrong + nearest, total + size, inexact + (nearest > 0)
        rates.append((wrong / total, inexact / len(words)))
    (phonemes, inexactly), (unstressed, _) = rates
    return Errors(phonemes, unstressed, inexactly)


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein's: the fewest insertions, deletions and substitutions from one to the other."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
