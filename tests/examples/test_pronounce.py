"""The example of a pronouncer that is trained from scratch: its data, its two ways of writing, and its served files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.g2p.data import dictionary
from examples.pronounce import data, demo
from examples.pronounce.model import Pronouncer, Speaker

pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> Pronouncer:
    torch.manual_seed(0)
    return Pronouncer(features=16, hidden=32)


def test_a_tenth_of_the_words_is_held_out_and_every_one_can_be_read_and_said() -> None:
    training, held_out = data.split()
    assert not set(training) & set(held_out)
    assert len(held_out) == (len(training) + len(held_out)) // 10
    assert len(training) > 110_000
    said = {phoneme for word in training + held_out for each in dictionary()[word] for phoneme in each}
    assert said == set(data.PHONEMES[2:])
    assert max(len(each) for word in training + held_out for each in dictionary()[word]) < data.MOST


def test_batches_have_every_pronunciation_once_and_no_padded_letters() -> None:
    words = data.split()[0][:300]
    found = []
    for letters, phonemes, valid in data.batches(words, 16, np.random.default_rng(0)):
        assert letters.min() > 0
        for row, (said, known) in enumerate(zip(phonemes, valid, strict=True)):
            assert said[known][-1] == data.END
            assert (said[known][:-1] > data.START).all()
            found.append(("".join(data.LETTERS[letter] for letter in letters[row]), tuple(data.said(said))))
    assert sorted(found) == sorted((word, tuple(each)) for word in words for each in dictionary()[word])


def test_errors_are_counted_by_the_closest_pronunciation() -> None:
    """Of "tomato" both are in the dictionary: T AH0 M EY1 T OW2 and T AH0 M AA1 T OW2."""
    assert data.distance("kitten", "sitting") == 3
    assert data.distance("", "abc") == 3
    right = data.errors(["tomato"], [["T", "AH0", "M", "AA1", "T", "OW2"]])
    assert right == (0, 0, 0)
    stressed = data.errors(["tomato"], [["T", "AH0", "M", "AA2", "T", "OW2"]])
    assert stressed == (1 / 6, 0, 1)
    assert data.errors(["tomato"], [["T", "M", "AA1", "T", "OW2"]]) == (1 / 6, 1 / 6, 1)


def test_the_loop_says_what_the_layer_was_taught() -> None:
    """The step cell has the layer's parameters, and padding of letters is not looked at."""
    model = small().double()
    letters, lengths = data.read(["onomatopoeia", "a", "don't"])
    with torch.no_grad():
        phonemes, count = Speaker(model)(letters, lengths)
        for row, length in enumerate(lengths.tolist()):
            scores = model.taught(letters[row : row + 1, :length], phonemes[row : row + 1])
            meant = int(count[row]) + 1
            assert torch.equal(scores[0].argmax(1)[:meant], phonemes[row][:meant])


def test_a_few_words_are_learned_and_served_as_in_pytorch(tmp_path: Path) -> None:
    words = [word for word in data.split()[0] if len(word) == 5][:24]
    model = demo.train(small(), words, epochs=220, batch=32)
    unseen = data.split()[1][:16]
    results = demo.run(model, tmp_path, words + unseen, len(words) + len(unseen))
    assert results.served == results.in_torch
    assert results.streamed == results.in_torch
    assert data.errors(words, results.served[: len(words)]).phonemes < 0.2
