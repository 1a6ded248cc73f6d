"""The example of numbers read aloud: its words and rows are right, and the served loop reads as PyTorch does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.read_aloud import data, demo, numbers
from examples.read_aloud.model import BLANK, Reader

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (7, "seven"),
        (10, "ten"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (307, "three hundred and seven"),
        (1000, "one thousand"),
        (1013, "one thousand and thirteen"),
        (2100, "two thousand one hundred"),
        (9999, "nine thousand nine hundred and ninety nine"),
    ],
)
def test_numbers_are_spoken(number: int, words: str) -> None:
    assert " ".join(numbers.spoken(number)) == words


def test_every_number_has_words_of_its_own_that_fit() -> None:
    found = {tuple(numbers.ids(number)) for number in range(1, 10_000)}
    assert len(found) == 9_999
    assert {len(each) for each in found} == {numbers.MOST}
    assert all(each[-1] == 0 for each in found)


@pytest.mark.parametrize("number", [0, 10_000])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="accepted are 1 to 9,999"):
        numbers.spoken(number)


def test_no_image_is_both_trained_on_and_held_out() -> None:
    training, held_out = data.load()
    assert (len(training.values), len(held_out.values)) == (1415, 382)
    assert not {each.tobytes() for each in training.images} & {each.tobytes() for each in held_out.images}


def test_what_is_held_out_begins_with_a_form_as_the_training_does() -> None:
    for digits in data.load():
        assert digits.values[:30].tolist() == 3 * list(range(10))


def test_a_row_shows_the_digits_of_its_number_from_left_to_right() -> None:
    """The images are told apart by their strength: that of digit 3 is 0.4 everywhere."""
    plain = data.Digits(np.stack([np.full((8, 8), (value + 1) / 10, np.float32) for value in range(10)]), np.arange(10))
    rows = data.draw(plain, 60, np.random.default_rng(0))
    assert {len(str(number)) for number in rows.numbers} == {2, 3, 4}
    for image, number in zip(rows.images, rows.numbers, strict=True):
        columns = image.max(0)
        wide = [round(float(value) * 10) - 1 for value in columns if value > 0]
        assert wide == [int(digit) for digit in str(number) for _ in range(data.SIDE)]


def test_varied_digits_are_other_images_of_the_same_digits() -> None:
    torch.manual_seed(0)
    training, _ = data.load()
    varied = data.varied(training)
    assert varied.images.shape == training.images.shape
    assert (varied.values == training.values).all()
    kept = [
        np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(*_images(training, varied), strict=True)
    ]
    assert 0.5 < np.mean(kept) < 0.99


def _images(*of: data.Digits) -> list[np.ndarray]:
    return [each.images for each in of]


def test_columns_are_told_the_digits_in_their_order() -> None:
    """Columns that show 7, 7 again, and 3, with others between, are right for 773 and wrong for 737."""
    shown = torch.full((22,), BLANK)
    shown[3:6], shown[9:11], shown[15] = 7, 7, 3
    seen = 20 * torch.nn.functional.one_hot(shown, BLANK + 1).float()
    assert demo.noticed(seen.unsqueeze(0), np.array([773])) < 1e-4
    assert demo.noticed(seen.unsqueeze(0), np.array([737])) > 5


def test_a_row_that_is_taught_what_it_reads_itself_scores_the_same_words() -> None:
    torch.manual_seed(0)
    reader, image = Reader(4, 16, 16).eval(), torch.rand(5, data.HEIGHT, data.WIDTH)
    with torch.no_grad():
        words, count = reader(image)
        scores, _ = reader.taught(image, words)
    meant = torch.arange(numbers.MOST) < count.unsqueeze(1)
    assert count.sum() > 0
    np.testing.assert_array_equal(scores.argmax(2)[meant], words[meant])


def test_the_demonstration_serves_what_pytorch_reads(tmp_path: Path) -> None:
    in_torch, served, different = demo.run(tmp_path, lambda: Reader(4, 16, 16), 12, 250)
    assert different == 0
    assert served == in_torch


def test_digits_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one digit, by hands that the training did not see; a tenth would be right by chance."""
    monkeypatch.setattr(demo, "LESSONS", ((1.0, (1,)),))
    torch.manual_seed(0)
    training, held_out = data.load()
    model = demo.train(Reader(8, 96, 64), training, 200)
    rows = data.draw(held_out, 200, np.random.default_rng(1), sizes=(1,))
    with torch.inference_mode():
        assert demo.right(model(torch.from_numpy(rows.images))[0].numpy(), rows) > 0.25
