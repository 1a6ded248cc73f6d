"""MDStack gathers windows between its layers, whatever the sizes of the images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim, export

from cellport.cells import CellError, MDStack
from cellport.cells.md_stack import windows

# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def by_hand(values, window, sizes):
    """One position of one window of one image at a time."""
    batch, features = values.shape[-2:]
    counts = [-(-n // w) for n, w in zip(values.shape, window, strict=False)]
    found = np.zeros((*counts, batch, *window, features))
    for b in range(batch):
        for p in np.ndindex(*sizes[b]):
            at = tuple(c // w for c, w in zip(p, window, strict=True))
            inner = tuple(c % w for c, w in zip(p, window, strict=True))
            found[(*at, b, *inner)] = values[(*p, b)]
    return found.reshape(*counts, batch, int(np.prod(window)) * features)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_windows_hold_the_positions_in_raster_order_and_0_beyond_the_image(data):
    grid = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    window = [data.draw(st.integers(1, 4)) for _ in grid]
    batch = data.draw(st.integers(1, 3))
    sizes = [[data.draw(st.integers(0, n)) for n in grid] for _ in range(batch)]
    values = torch.arange(1.0, np.prod(grid) * batch * 2 + 1).reshape(*grid, batch, 2)
    for given_sizes in (None, sizes):
        found, counts = windows(values, window, None if given_sizes is None else torch.tensor(sizes))
        whole = given_sizes or [grid] * batch
        clean = by_hand(values.numpy(), window, whole)
        for b, size in enumerate(whole):
            inside = tuple(slice(-(-n // w)) for n, w in zip(size, window, strict=True))
            np.testing.assert_array_equal(found[inside][..., b, :], clean[inside][..., b, :])
        assert found.shape == clean.shape
        if given_sizes is not None:
            assert counts.tolist() == [[-(-n // w) for n, w in zip(size, window, strict=True)] for size in sizes]


def build(**options):
    torch.manual_seed(0)
    return MDStack(1, [2, 3], [4], [(2, 3), (2, 2)], cell="leaky_lp", dtype=torch.float64, **options)


def test_an_image_alone_is_the_image_in_its_padded_batch():
    stack = build()
    x = torch.randn(9, 13, 3, 1, dtype=torch.float64)
    sizes = torch.tensor([[9, 13], [5, 4], [1, 8]])
    padded = x.clone()
    for b, (height, width) in enumerate(sizes.tolist()):
        padded[height:, :, b] = padded[:, width:, b] = float("nan")
    output, counts = stack(padded, sizes)
    assert output.shape == (3, 3, 3, stack.output_size)
    assert counts.tolist() == [[3, 3], [2, 1], [1, 2]]
    for b, (height, width) in enumerate(sizes.tolist()):
        alone, _ = stack(x[:height, :width, b : b + 1])
        inside = output[: counts[b, 0], : counts[b, 1], b : b + 1]
        torch.testing.assert_close(alone, inside, rtol=1e-12, atol=1e-12)
        assert not output[counts[b, 0] :, :, b].any()


def test_nan_in_the_padding_reaches_no_gradient():
    stack, sizes = build(batch_first=True), torch.tensor([[5, 4], [0, 3], [3, 7]])
    x = torch.randn(3, 5, 7, 1, dtype=torch.float64)
    grads = []
    for value in (0.0, float("nan")):
        padded = x.clone()
        for b, (height, width) in enumerate(sizes.tolist()):
            padded[b, height:] = padded[b, :, width:] = value
        grads.append(torch.autograd.grad(stack(padded, sizes)[0].sin().sum(), list(stack.parameters())))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_a_stack_exports_with_batch_and_sizes_dynamic():
    stack = build(directions="forward").eval()
    height, width, batch = Dim("height", min=5), Dim("width", min=7), Dim("batch")
    sizes = torch.tensor([[11, 13], [5, 4]])
    program = export(
        stack,
        (torch.randn(11, 13, 2, 1, dtype=torch.float64), sizes),
        dynamic_shapes=({0: height, 1: width, 2: batch}, {0: batch}),
        strict=False,
    )
    for grid in ((8, 9), (5, 7)):
        x = torch.randn(*grid, 3, 1, dtype=torch.float64)
        sizes = torch.tensor([grid, [2, 2], [1, 2]])
        torch.testing.assert_close(program.module()(x, sizes), stack(x, sizes), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, [2], [], []), "there are 1 hidden_sizes, 0 windows and 0 features"),
        ((1, [2, 3], [], [(1, 1), (2, 2)]), "there are 2 hidden_sizes, 2 windows and 0 features"),
        ((1, [2], [], [(2,)]), r"a window is \(2,\); accepted are 2 sizes"),
        ((1, [2], [], [(2, 0)]), "a size of a window is 0; accepted is an integer of at least 1"),
    ],
)
def test_what_does_not_fit_together_is_named(arguments, message):
    with pytest.raises(CellError, match=message):
        MDStack(*arguments)
