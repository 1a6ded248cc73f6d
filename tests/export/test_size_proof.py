"""Images of different sizes share a run only where the module itself does not see the difference."""

from typing import Any

import numpy as np
import pytest

from cellport.export.size_proof import padded_sizes

INPUTS: dict[str, Any] = {"image": ("batch", "height", "width", 2), "sizes": ("batch", 2)}
OUTPUTS: dict[str, Any] = {"map": ("batch", "height", "width"), "total": ("batch",)}
EXAMPLES = {"image": np.zeros((2, 3, 4, 2)), "sizes": np.ones((2, 2), np.int64)}


def masked(feeds: Any, outside: float = 0.0) -> Any:
    """Sums over what is inside, with a part of what is outside."""
    image, sizes = feeds["image"].sum(3), feeds["sizes"]
    rows = np.arange(image.shape[1])[None, :, None] < sizes[:, :1, None]
    columns = np.arange(image.shape[2])[None, None] < sizes[:, 1:, None]
    inside = np.where(rows & columns, image, outside * image)
    return {"map": inside.cumsum(1).cumsum(2), "total": inside.sum((1, 2))}


def test_a_module_that_keeps_to_the_sizes_is_proved() -> None:
    sizes, told = padded_sizes(masked, INPUTS, OUTPUTS, EXAMPLES, 1)
    assert sizes is not None
    assert sizes.axes == ("height", "width")
    assert told == "sizes: images in one batch proved equal to each alone"


@pytest.mark.parametrize(
    "run",
    [
        lambda feeds: masked(feeds, 1e-3),
        lambda feeds: {**masked(feeds), "total": np.full(3, float(feeds["image"].shape[1]))[: len(feeds["sizes"])]},
    ],
    ids=["what is outside", "the size of the batch's axes"],
)
def test_a_module_that_sees_more_than_its_image_is_not(run: Any) -> None:
    sizes, told = padded_sizes(run, INPUTS, OUTPUTS, EXAMPLES, 1)
    assert sizes is None
    assert "of an image depends on the larger ones" in told


def test_other_axes_and_other_integers_leave_it_unproved() -> None:
    assert (
        padded_sizes(masked, {**INPUTS, "more": ("batch", "n")}, OUTPUTS, EXAMPLES | {"more": np.zeros((2, 2))}, 1)[0]
        is None
    )
    assert padded_sizes(masked, INPUTS, {"map": ("batch", "n")}, EXAMPLES, 1)[0] is None
    ids = EXAMPLES | {"ids": np.zeros(2, np.int64)}
    assert padded_sizes(masked, {**INPUTS, "ids": ("batch",)}, OUTPUTS, ids, 1)[0] is None
    assert padded_sizes(masked, {"image": INPUTS["image"]}, OUTPUTS, EXAMPLES, 1) == (None, "")
