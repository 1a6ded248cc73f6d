"""`wavefront` runs any step function over a grid of any number of dimensions, in any direction, and exports it."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from cellport.cells import CellError, wavefront
from cellport.cells.sizes import far_side
from cellport.cells.wavefront import wavefront_outputs

from .grid_oracle import raster

# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

H = 3


class Pair(NamedTuple):
    h: Tensor
    n: Tensor


class Own(nn.Module):
    """A user's cell: each dimension has weights of its own, and counts the positions along it."""

    def __init__(self, dimensions: int, flips: Any = None, **options: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(dimensions)
        self.weights = nn.Parameter(torch.randn(dimensions, H, H, generator=generator, dtype=torch.float64))
        self.flips, self.options = flips, options

    def forward(self, x: Tensor, h: Tensor, sizes: Tensor | None = None, sides: Any = None) -> tuple[Any, Pair]:
        def step(before: tuple[Pair, ...], x: Tensor) -> tuple[Pair, dict[str, Tensor]]:
            a = x + sum(F.linear(each.h, self.weights[d]) for d, each in enumerate(before))
            n = 1 + sum(each.n for each in before)
            return Pair(torch.tanh(a), n), {"h": torch.tanh(a), "sum": n + a}

        grid = x.shape[: len(self.weights)]
        state = Pair(h, torch.zeros_like(h[..., :1]))
        return wavefront(step, state, x, grid, sizes=sizes, sides=sides, flips=self.flips, **self.options)

    def position(self, before: list[Any], x: Any) -> tuple[Any, Any]:
        weights = self.weights.detach().numpy()
        a = x + sum(w @ each[0] for each, w in zip(before, weights, strict=True))
        n = 1 + sum(each[1] for each in before)
        return (np.tanh(a), n), np.concatenate([np.tanh(a), n + a])


def draw(grid, batch, *directions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*grid, batch, *directions, H, generator=generator, dtype=torch.float64)
    h = torch.randn(*directions, batch, H, generator=generator, dtype=torch.float64)
    return x, h


def draw_sides(grid, batch, *directions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for d in range(len(grid)):
        others = [n for other, n in enumerate(grid) if other != d]
        h, n = (torch.randn(*others, batch, *directions, k, generator=generator, dtype=torch.float64) for k in (H, 1))
        sides.append(Pair(h, n) if d != 1 else None)
    return sides


def by_hand(module, x, h, sizes, sides, b, direction=None):
    """States and outputs of one image in one direction."""
    flip = () if direction is None else module.flips[direction]
    at = (b,) if direction is None else (b, direction)
    state = h[at[::-1]]
    x = x[(slice(None),) * len(sizes) + at].numpy()
    if sides is not None:
        rank = len(sizes) - 1
        sides = [None if side is None else _records(side, rank, at) for side in sides]
    return raster(module.position, (state.numpy(), np.zeros(1)), x, sizes, sides, flip)


def _records(side, rank, at):
    h, n = (leaf[(slice(None),) * rank + at].numpy() for leaf in side)
    found = np.empty(h.shape[:rank], object)
    for p in np.ndindex(found.shape):
        found[p] = (h[p], n[p])
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_raster_order_over_each_images_own_positions(data):
    grid = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    batch, along = data.draw(st.integers(1, 3)), data.draw(st.integers(-len(grid), len(grid) - 1))
    flips = data.draw(
        st.none() | st.lists(st.sets(st.integers(0, len(grid) - 1)), min_size=1, max_size=3), label="flips"
    )
    directions = [] if flips is None else [len(flips)]
    along %= len(grid)
    apart = data.draw(st.sampled_from([None, *(d for d in range(len(grid)) if d != along)]))
    module = Own(len(grid), flips, along=along, apart=apart)
    x, h = draw(grid, batch, *directions)
    sides = data.draw(st.sampled_from([None, draw_sides(grid, batch, *directions)]))
    ragged = data.draw(st.booleans())
    sizes = [[data.draw(st.integers(0, n)) if ragged else n for n in grid] for _ in range(batch)]
    outputs, final = module(x, h, torch.tensor(sizes) if ragged else None, sides)
    for b in range(batch):
        for direction in range(len(flips)) if flips is not None else [None]:
            at = (b,) if direction is None else (b, direction)
            states, wanted = by_hand(module, x, h, sizes[b], sides, b, direction)
            got_h, got_sum = (outputs[k][(slice(None),) * len(grid) + at].detach().numpy() for k in ("h", "sum"))
            for p in np.ndindex(*grid):
                found = np.concatenate([got_h[p], got_sum[p]])
                np.testing.assert_allclose(found, wanted.get(p, np.zeros(2 * H)), rtol=1e-12, atol=1e-12)
            backwards = flips is not None and along in flips[direction]
            for p in np.ndindex(*(n for d, n in enumerate(grid) if d != along)):
                last = (*p[:along], 0 if backwards else sizes[b][along] - 1, *p[along:])
                if last in states:
                    leaf = final.h[(slice(None),) * (len(grid) - 1) + at].detach().numpy()[p]
                    np.testing.assert_allclose(leaf, states[last][0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 2)])
def test_the_choice_of_the_dimension_without_slots_changes_no_bit(grid):
    x, h = draw(grid, 2)
    outputs = [Own(len(grid), along=along)(x, h)[0] for along in range(len(grid))]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


@pytest.mark.parametrize("flips", [None, [(0,), (), (0, 1)]], ids=["one direction", "three directions"])
def test_nan_in_the_padding_reaches_no_output_state_or_gradient(flips):
    directions = [] if flips is None else [len(flips)]
    x, h = draw((3, 4), 3, *directions)
    sizes = torch.tensor([[3, 2], [0, 4], [2, 4]])
    module = Own(2, flips)

    def run(padding):
        dirty = x.clone()
        for b, (height, width) in enumerate(sizes.tolist()):
            dirty[height:, :, b] = padding
            dirty[:, width:, b] = padding
        dirty.requires_grad_()
        outputs, final = module(dirty, h, sizes)
        loss = outputs["h"].cos().sum() + outputs["sum"].sin().sum() + final.h.sin().sum()
        return outputs["h"], final.h, *torch.autograd.grad(loss, [dirty, module.weights])

    torch.testing.assert_close(run(float("nan")), run(0.0), rtol=0, atol=0)


def test_gradients_are_finite_differences():
    module = Own(2, [(), (1,)])
    x, h = draw((2, 3), 2, 2)
    sides = draw_sides((2, 3), 2, 2)
    sizes = torch.tensor([[2, 3], [1, 2]])

    def run(x, h, side, weights):
        outputs, final = torch.func.functional_call(
            module, {"weights": weights}, (x, h, sizes, [Pair(side, sides[0].n), None])
        )
        return outputs["h"], outputs["sum"], final.h

    arguments = [t.clone().detach().requires_grad_() for t in (x, h, sides[0].h, module.weights)]
    assert torch.autograd.gradcheck(run, arguments, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


def test_a_grid_in_two_pieces_along_a_dimension_is_the_whole_grid():
    x, h = draw((5, 3), 2)
    module = Own(2, along=0)
    whole, final = module(x, h)
    first, state = module(x[:2], h)
    second, state = module(x[2:], h, None, [state, None])
    torch.testing.assert_close(torch.cat([first["h"], second["h"]]), whole["h"], rtol=0, atol=0)
    torch.testing.assert_close(state, final, rtol=0, atol=0)


def test_a_side_may_set_one_tensor_of_the_state():
    x, h = draw((2, 3), 2)
    sides = draw_sides((2, 3), 2)
    some, _ = Own(2)(x, h, None, [Pair(sides[0].h, None), None])
    every, _ = Own(2)(x, h, None, [Pair(sides[0].h, torch.zeros_like(sides[0].n)), None])
    torch.testing.assert_close(some, every, rtol=0, atol=0)


@pytest.mark.parametrize("along", [0, 1])
def test_the_far_side_of_the_outputs_is_the_final_state(along):
    x, h = draw((3, 4), 3)
    sizes = torch.tensor([[3, 2], [1, 4], [2, 3]])
    for each in (None, sizes):
        outputs, final = Own(2, along=along)(x, h, each)
        torch.testing.assert_close(far_side(outputs["h"], along, each), final.h, rtol=0, atol=0)


@pytest.mark.parametrize("grid", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_a_grid_without_positions_gives_no_outputs_and_passes_on_what_enters(grid):
    x, h = draw(grid, 2)
    sides = draw_sides(grid, 2)
    for along in range(len(grid)):
        outputs, final = Own(len(grid), along=along)(x, h, None, sides)
        assert outputs["h"].shape == (*grid, 2, H)
        if grid[along] == 0 and sides[along] is not None:
            torch.testing.assert_close(final, sides[along], rtol=0, atol=0)
        Own(len(grid), [(0,), ()], along=along)(*draw(grid, 2, 2))


def test_a_grid_without_inputs_lives_on_what_enters_at_its_sides():
    def step(before, _):
        return before[0] + before[1], before[0]

    sides = [torch.zeros(4, 1, 1, dtype=torch.int64), torch.ones(3, 1, 1, dtype=torch.int64)]
    outputs, final = wavefront(step, torch.zeros(1, 1, dtype=torch.int64), (), (3, 4), sides=sides)
    # A position holds the number of paths that reach it.
    assert final.flatten().tolist() == [1, 5, 15]
    assert outputs[..., 0, 0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("flips", "apart"), [(None, None), (None, 0), ([(), (0,), (0, 1)], None)], ids=["rows", "apart", "directions"]
)
def test_a_grid_exports_with_batch_and_sizes_dynamic(flips, apart):
    directions = [] if flips is None else [len(flips)]
    module = Own(2, flips, apart=apart).eval()
    height, width, batch = Dim("height"), Dim("width"), Dim("batch")
    sizes = torch.tensor([[3, 2], [1, 5]])
    program = export(
        module,
        (*draw((3, 5), 2, *directions), sizes),
        dynamic_shapes=({0: height, 1: width, 2: batch}, {len(directions): batch}, {0: batch}),
        strict=False,
    )
    scans = [node for node in program.graph.nodes if "scan" in str(node.target)]
    assert len([node for node in scans if node.op == "call_function"]) == 1
    for grid, count in (((3, 5), 2), ((7, 2), 4), ((2, 9), 3)):
        x, h = draw(grid, count, *directions, seed=1)
        sizes = torch.tensor([[grid[0] - b % 2, grid[1] - b // 2] for b in range(count)])
        torch.testing.assert_close(program.module()(x, h, sizes), module(x, h, sizes), rtol=0, atol=1e-15)


class Blank(nn.Module):
    """A cell that makes zeros of zeros; `last` gives out the last slot of the dimension apart alone."""

    def __init__(self, flips: Any = None, apart: int | None = None, last: bool = False) -> None:
        super().__init__()
        self.flips, self.apart, self.last = flips, apart, last

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        def step(before: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(x + before[0] - 2 * before[1])
            return h, (h.narrow(-3, h.shape[-3] - 1, 1) if self.last else h + 0)

        grid = x.shape[:2]
        state = x.new_zeros(*([] if self.flips is None else [len(self.flips)]), x.shape[2], H)
        return wavefront_outputs(step, state, x, grid, sizes=sizes, flips=self.flips, apart=self.apart)


@pytest.mark.parametrize("shared", [False, True], ids=["own inputs", "one input"])
@pytest.mark.parametrize(
    ("flips", "apart"), [(None, None), (None, 0), ([(), (1,), (0, 1)], None)], ids=["rows", "apart", "directions"]
)
def test_a_grid_that_starts_from_nothing_exports_without_holding_and_reads_no_padding(flips, apart, shared):
    if shared and flips is None:
        pytest.skip("there is one direction")
    directions = [] if flips is None else [1 if shared else len(flips)]
    module = Blank(flips, apart).eval()
    axes = {0: Dim("height"), 1: Dim("width"), 2: Dim("batch")}
    example = (draw((3, 5), 2, *directions)[0], torch.tensor([[3, 2], [1, 5]]))
    program = export(module, example, dynamic_shapes=(axes, {0: axes[2]}), strict=False)
    for grid, count in (((3, 5), 2), ((7, 2), 4), ((2, 9), 3)):
        x = draw(grid, count, *directions, seed=1)[0]
        sizes = torch.tensor([[grid[0] - b % 2, grid[1] - b // 2] for b in range(count)])
        dirty = x.clone()
        for b, (height, width) in enumerate(sizes.tolist()):
            dirty[height:, :, b] = dirty[:, width:, b] = float("nan")
        torch.testing.assert_close(program.module()(dirty, sizes), module(x, sizes), rtol=0, atol=1e-15)


@pytest.mark.parametrize("flips", [None, [(), (1,)]], ids=["one direction", "two directions"])
def test_the_last_slot_alone_gives_what_it_gives_among_all(flips):
    x, _ = draw((3, 4), 2, *([] if flips is None else [2]))
    sizes = torch.tensor([[3, 4], [3, 2]])
    every, last = (Blank(flips, 0, alone)(x, sizes) for alone in (False, True))
    torch.testing.assert_close(last, every[-1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (3, 5)}, r"shape \[3, 4, 2, 3\]; accepted is \[3, 5, 2\] first"),
        ({"grid": ()}, "grid has no dimensions"),
        ({"along": 2}, "along is 2; accepted is a dimension of the grid, -2 to 1"),
        ({"apart": -1}, "apart is -1; accepted is a dimension of the grid other than along, which is 1"),
        ({"flips": [(2,)]}, r"flips are \[\(2,\)\]; accepted is for each direction a list of dimensions 0 to 1"),
        ({"sizes": torch.tensor([3, 4])}, r"sizes have shape \['2'\]; accepted is \[batch, 2\]"),
        ({"sizes": torch.tensor([[3, 4]])}, r"sizes have shape \[1, 2\]; accepted is \[batch, 2\] = \[2, 2\]"),
        ({"sizes": torch.tensor([[3, 4], [3, 5]])}, "sizes have the value 5 in column 1; accepted is 0 to 4"),
        ({"sizes": torch.ones(2, 2)}, "sizes have dtype torch.float32; accepted is an integer dtype"),
        ({"sides": [None]}, "there are 1 sides; accepted are 2"),
        ({"sides": [torch.zeros(3, 2, H), None]}, r"side 0 holds \['3', '2', '3'\]"),
        ({"state": ()}, "the state holds"),
        ({"inputs": torch.zeros(3)}, r"inputs hold \['3'\]; accepted are tensors \[n_1 to n_2, batch, ...\]"),
        ({"step": lambda before, x: ((x, x), x)}, "the step's new state is"),
        ({"step": lambda before, x: (x[:1], x)}, r"the step's new state holds \['1', '3'\]"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(change, message):
    arguments = {
        "step": lambda before, x: (before[0] + x, x),
        "state": torch.zeros(2, H),
        "inputs": torch.zeros(3, 4, 2, H),
        "grid": (3, 4),
        **change,
    }
    with pytest.raises(CellError, match=message):
        wavefront(
            arguments.pop("step"),
            arguments.pop("state"),
            arguments.pop("inputs"),
            arguments.pop("grid"),
            **arguments,
        )


@pytest.mark.parametrize("grid", [(1, 1), (5, 1), (4, 7), (2, 3, 4)])
def test_a_step_without_products_is_raster_order_to_the_bit(grid):
    """A product may round otherwise for another number of rows; nothing else may."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(H, generator=generator) for _ in grid]
    x = torch.randn(*grid, 2, H, generator=generator)

    def step(before, a):
        for weight, h in zip(weights, before, strict=True):
            a = a + weight * h
        return torch.tanh(a), torch.tanh(a)

    found = wavefront(step, torch.zeros(2, H), x, grid)[0]
    wanted = {}
    for p in np.ndindex(*grid):
        near = [tuple(c - (axis == d) for axis, c in enumerate(p)) for d in range(len(grid))]
        wanted[p] = step([wanted.get(each, torch.zeros(2, H)) for each in near], x[p])[0]
        assert torch.equal(found[p], wanted[p])
