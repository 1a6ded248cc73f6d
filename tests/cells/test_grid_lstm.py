"""The Grid LSTM is the specification's section 6, whatever its dimensions, options and schedule."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellport.cells import LSTM, CellError, GridLSTM, GridState, LSTMCell
from cellport.cells.grid_blank import keeps_zeros
from cellport.cells.grid_block import GridForm, GridProducts

from .grid_lstm_oracle import Block, Network

I, H = 3, 2
CASES = {
    "1d": {"dimensions": 1, "num_layers": 4},
    "1d-tied": {"dimensions": 1, "num_layers": 4, "tied": True, "form": "tanh(o*m)", "readout": "hm"},
    "2d": {"num_layers": 3},
    "2d-tied": {"num_layers": 3, "tied": True, "readout": "hm", "learned_outside": True},
    "2d-depth-first": {"num_layers": 3, "priority": [0]},
    "2d-depth-last": {"num_layers": 3, "priority": [1], "side_sizes": {0: 4}},
    "2d-both": {"num_layers": 2, "priority": [0, 1], "tied": True},
    "2d-plain-depth": {"num_layers": 3, "plain": [1], "priority": [1], "activation": "tanh", "learned_outside": True},
    "2d-plain-time": {"num_layers": 2, "plain": [0], "activation": "sigmoid"},
    "2d-plain": {"num_layers": 2, "plain": [0, 1], "activation": "tanh", "priority": [1], "bias": False},
    "2d-wavefront": {"num_layers": 3, "schedule": "wavefront", "priority": [1]},
    "2d-printed": {"num_layers": 3, "form": "tanh(o*m)", "tied": True},
    "2d-directions": {"num_layers": 2, "directions": [(), (0,)]},
    "3d": {"dimensions": 3, "num_layers": 2, "side_sizes": {1: 2}, "learned_outside": True},
    "3d-tied-directions": {
        "dimensions": 3,
        "num_layers": 2,
        "tied": True,
        "priority": [0, 2],
        "directions": [(), (0,), (0, 1)],
        "side_sizes": {0: 2},
        "learned_outside": True,
    },
    "3d-plain": {"dimensions": 3, "num_layers": 2, "plain": [1, 2], "priority": [2], "directions": [(), (1,)]},
    "4d-tied": {"dimensions": 4, "num_layers": 2, "tied": True, "priority": [3]},
}
ONE_DIRECTION = [name for name, options in CASES.items() if name[0] != "1" and "directions" not in options]
RAGGED = [name for name in CASES if name[0] != "1"]
LAYERED = ["2d", "2d-tied", "2d-depth-last", "2d-plain-depth"]
GRIDS = {1: (), 2: (5,), 3: (3, 4), 4: (2, 1, 2)}


def close(actual, wanted, tolerance=1e-12):
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def build(name, seed=0, **changes):
    torch.manual_seed(seed)
    cell = GridLSTM(I, H, dtype=torch.float64, **{**CASES[name], **changes})
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.7)
    return cell


def draw(cell, grid=None, batch=3, seed=1):
    """Input, state (None where none is taken) and data for the sides."""
    generator = torch.Generator().manual_seed(seed)
    grid = GRIDS[cell.dimensions] if grid is None else grid

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sides = {}
    for key, entry in cell.entries.items():
        others = [n for d, n in enumerate(grid) if d != int(key)]
        sides[int(key)] = normal(*others, batch, entry.in_features)
    state = None
    if grid and cell.directions is None and 0 not in sides:
        shape = (*grid[1:], cell.num_layers, batch, H)
        state = GridState(normal(*shape), normal(*shape) if 0 in cell.form.memory else None)
    return normal(*grid, batch, I), state, sides or None


def draw_lengths(cell, grid, batch, seed=0):
    generator = np.random.default_rng(seed)
    drawn = torch.tensor([[int(generator.integers(n + 1)) for n in grid] for _ in range(batch)])
    return drawn[:, 0] if cell.dimensions == 2 else drawn


def network(cell, direction=None):
    """The oracle with a cell's weights, in one of its directions."""
    values = {name: p.detach().numpy() for name, p in cell.named_parameters()}
    count, form, layers = cell.dimensions, cell.form, cell.num_layers

    def own(array):
        return array if direction is None else array[direction]

    def of_direction(weight):
        if direction is None:
            return weight
        return weight.reshape(len(cell.directions), -1, *weight.shape[1:])[direction]

    plain = cell.plain
    blocks = []
    for layer in range(layers):
        weight = own(values["weight"])
        weight = weight if cell.tied else weight[layer]
        bias = own(values["bias"]) if "bias" in values else np.zeros(weight.shape[0] * (1 if cell.tied else layers))
        bias = bias if cell.tied or bias.ndim == 1 else bias[layer]
        sizes = np.cumsum([(1 if i in plain else 4) * H for i in range(count)])[:-1]
        rows = weight.shape[0]
        blocks.append(
            Block(
                np.split(weight, sizes),
                np.split(bias[:rows], sizes),
                cell.priority,
                plain,
                form.activation,
                form.output,
            )
        )

    def projection(prefix):
        weight = of_direction(values[f"{prefix}.weight"])
        bias = of_direction(values[f"{prefix}.bias"]) if f"{prefix}.bias" in values else np.zeros(weight.shape[0])
        return weight, bias

    outside = own(values["outside"]) if "outside" in values else np.zeros(2 * count * H)
    pairs, place = [], (count - 1) * H
    for i in range(count - 1):
        h, m = outside[i * H : (i + 1) * H], None
        if i not in plain:
            m, place = outside[place : place + H], place + H
        pairs.append((h, m))
    return Network(blocks, projection("entry"), pairs, {int(key): projection(f"entries.{key}") for key in cell.entries})


def expected(cell, input, state, sides, lengths=None):
    """Output and, of a single direction, the final state, element by element."""
    grid, batch = input.shape[:-2], input.shape[-2]
    output = np.zeros((*grid, batch, cell.output_size))
    shape = (*grid[1:], cell.num_layers, batch, H)
    final = [np.zeros(shape), np.zeros(shape)] if grid else [np.zeros((batch, H)), np.zeros((batch, H))]
    runs = [None] if cell.directions is None else range(len(cell.directions))
    width = cell.output_size // len(runs)
    for b, (number, direction) in itertools.product(range(batch), enumerate(runs)):
        size = list(grid) if lengths is None else lengths.reshape(batch, -1)[b].tolist()
        net = network(cell, direction)
        flip = () if direction is None else cell.directions[direction]
        entering = {}
        if state is not None:
            entering[0] = lambda p, b=b: tuple(None if s is None else s[(*p, b)].numpy() for s in state)
        for i, data in (sides or {}).items():
            entering[i] = lambda p, b=b, i=i, data=data, net=net: net.pair(
                net.entries[i], data[(*p[:-1], b)].numpy(), i
            )
        read, states = net.run(input[..., b, :].numpy(), size, flip, entering)
        for p, values in read.items():
            output[(*p, b)][number * width : (number + 1) * width] = values[:width]
        if cell.directions is not None:
            continue
        for p in np.ndindex(*shape[: len(grid)]) if grid else [()]:
            last = (cell.num_layers - 1,) if not grid else (size[0] - 1, *p)
            if last in states:
                pair = states[last][0]
            elif any(c >= n for c, n in zip(p, size[1:], strict=False)):
                continue
            else:
                pair = entering[0](p) if 0 in entering else net.outside[0]
            for tensor, value in zip(final, pair, strict=True):
                if value is not None:
                    tensor[(*p, b)] = value
    return output, final


def tensors_of(state):
    return [t for t in state if t is not None]


def check(cell, input, state, lengths, sides):
    output, final = cell(input, state, lengths, sides)
    wanted, wanted_final = expected(cell, input, state, sides, lengths)
    np.testing.assert_allclose(output.detach().numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert (final is None) == (cell.directions is not None)
    for actual, other in zip(tensors_of(final or ()), wanted_final, strict=False):
        np.testing.assert_allclose(actual.detach().numpy(), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_output_and_state_are_the_oracles(name):
    cell = build(name)
    input, state, sides = draw(cell)
    check(cell, input, state, None, sides)
    check(cell, input, None, None, sides)


@pytest.mark.parametrize("name", RAGGED)
def test_each_element_of_a_batch_has_lengths_of_its_own(name):
    cell = build(name)
    input, state, sides = draw(cell, batch=4)
    check(cell, input, state, draw_lengths(cell, input.shape[:-2], 4), sides)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_grid_of_any_options_is_the_oracles(data):
    dimensions = data.draw(st.integers(1, 3), label="dimensions")
    every = st.sets(st.integers(0, dimensions - 1))
    plain = data.draw(every, label="plain")
    directions = st.none() | st.lists(st.sets(st.integers(0, dimensions - 2)), min_size=1, max_size=2)
    torch.manual_seed(0)
    cell = GridLSTM(
        data.draw(st.integers(1, 3)),
        H,
        data.draw(st.integers(1, 3), label="layers"),
        dimensions,
        tied=data.draw(st.booleans(), label="tied"),
        priority=data.draw(every, label="priority"),
        plain=plain,
        activation=data.draw(st.sampled_from(["identity", "tanh", "sigmoid"])),
        form=data.draw(st.sampled_from(["o*tanh(m)", "tanh(o*m)"])),
        bias=data.draw(st.booleans()),
        readout="h" if dimensions - 1 in plain else data.draw(st.sampled_from(["h", "hm"])),
        learned_outside=data.draw(st.booleans()),
        directions=data.draw(directions, label="directions") if dimensions > 1 else None,
        dtype=torch.float64,
    )
    grid = [data.draw(st.integers(1, 3)) for _ in range(dimensions - 1)]
    batch = data.draw(st.integers(1, 2))
    _, state, _ = draw(cell, grid, batch)
    input = torch.randn(*grid, batch, cell.input_size, dtype=torch.float64)
    lengths = draw_lengths(cell, grid, batch) if grid and data.draw(st.booleans(), label="ragged") else None
    check(cell, input, state if data.draw(st.booleans()) else None, lengths, None)


def vector(*shape, start):
    n = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64)
    return (0.4 * torch.sin(1.3 * n + 0.2)).reshape(shape)


@pytest.mark.parametrize(
    ("options", "h", "m"),
    [
        (
            {},
            [0.1913218089, -0.1976419825, -0.0729721847, 0.0999515580],
            [0.3197724575, -0.2829952200, -0.1336868495, 0.3134324111],
        ),
        ({"priority": [0]}, [0.1144453404, -0.1385332969], [0.2030627727, -0.2285231778]),
        ({"output": "tanh(o*m)"}, [0.1952591007, -0.2001513007], []),
    ],
)
def test_a_block_gives_the_vectors_of_the_specification(options, h, m):
    weight = torch.cat([vector(8, 4, start=0), vector(8, 4, start=32)])
    block = GridProducts(GridForm(2, 2, **options), weight, None)
    incoming = torch.cos(0.9 * torch.arange(4, dtype=torch.float64) + 0.1)
    got_h, got_m = block(incoming[None], torch.tensor([[0.3, -0.2, 0.1, 0.5]], dtype=torch.float64))
    np.testing.assert_allclose(got_h[0, : len(h)], h, atol=1e-9)
    np.testing.assert_allclose(got_m[0, : len(m)], m, atol=1e-9)


def test_one_tied_dimension_is_an_lstm_cell_whose_input_is_0():
    cell = build("1d-tied", form="o*tanh(m)", num_layers=6)
    lstm = LSTMCell(1, H, dtype=torch.float64)
    u, f, o, c = cell.weight.chunk(4)
    with torch.no_grad():
        lstm.weight_hh.copy_(torch.cat([u, f, c, o]))
        lstm.bias_hh.copy_(torch.cat([cell.bias.chunk(4)[i] for i in (0, 1, 3, 2)]))
        lstm.bias_ih.zero_()
    input, _, _ = draw(cell)
    state = cell.entry(input).chunk(2, -1)
    for _ in range(6):
        output, state = lstm(torch.zeros(3, 1, dtype=torch.float64), state)
    close(cell(input)[0], torch.cat([output, state.c], -1))


@pytest.mark.parametrize("schedule", ["layers", "wavefront"])
def test_depth_that_hands_h_of_time_upwards_makes_a_stacked_lstm(schedule):
    cell = build("2d", plain=[1], priority=[1], schedule=schedule)
    lstm = LSTM(I, H, num_layers=3, dtype=torch.float64)
    with torch.no_grad():
        for layer in range(3):
            of_time = cell.weight[layer][: 4 * H].chunk(4)
            own = lstm.of_direction(layer, 0)
            gates = torch.cat([of_time[i] for i in (0, 1, 3, 2)])
            # The columns are h of time, then h of depth, which in the first layer is the projected input.
            own[1].copy_(gates[:, :H])
            own[0].copy_(gates[:, H:] @ cell.entry.weight if layer == 0 else gates[:, H:])
            own[3].zero_()
            own[2].copy_(torch.cat([cell.bias[layer][: 4 * H].chunk(4)[i] for i in (0, 1, 3, 2)]))
            if layer == 0:
                own[2].add_(gates[:, H:] @ cell.entry.bias)
            # V = [I 0] of H = [h'_time; h_depth]: what depth hands on is time's new h.
            cell.weight[layer][4 * H :] = torch.eye(H, 2 * H)
            cell.bias[layer][4 * H :] = 0
    input, state, _ = draw(cell)
    output, final = cell(input, state)
    wanted, wanted_final = lstm(input, tuple(state))
    close(output, wanted)
    close(tuple(final), tuple(wanted_final))


def test_along_time_one_layer_is_an_lstm_of_the_projected_input():
    cell = build("2d", num_layers=1, schedule="wavefront")
    lstm = LSTM(H, H, dtype=torch.float64)
    with torch.no_grad():
        gates = torch.cat([cell.weight[0][: 4 * H].chunk(4)[i] for i in (0, 1, 3, 2)])
        lstm.weight_hh_l0.copy_(gates[:, :H])
        lstm.weight_ih_l0.copy_(gates[:, H:])
        lstm.bias_hh_l0.zero_()
        lstm.bias_ih_l0.copy_(torch.cat([cell.bias[0][: 4 * H].chunk(4)[i] for i in (0, 1, 3, 2)]))
    input, state, _ = draw(cell)
    _, final = cell(input, state)
    _, wanted = lstm(cell.entry(input)[..., :H], tuple(state))
    close(tuple(final), tuple(wanted))


@pytest.mark.parametrize("name", LAYERED)
def test_both_schedules_give_the_same_results_and_gradients(name):
    layers, waves = build(name), build(name, schedule="wavefront")
    assert layers.by_layers
    assert not waves.by_layers
    input, state, sides = draw(layers)
    lengths = torch.tensor([5, 0, 3])
    close(gradients(layers, input, state, lengths, sides), gradients(waves, input, state, lengths, sides))


def gradients(cell, input, state, lengths, sides):
    """Results, and the gradients of a fixed loss by the input, the state, the sides and the parameters."""
    input = input.clone().requires_grad_()
    state = None if state is None else GridState(*(t if t is None else t.clone().requires_grad_() for t in state))
    output, final = cell(input, state, lengths, sides)
    results = [output, *tensors_of(final or ())]
    loss = sum((t * torch.arange(t.numel(), dtype=t.dtype).reshape(t.shape).cos()).sum() for t in results)
    wanted = [input, *tensors_of(state or ()), *cell.parameters()]
    return [*results, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name):
    cell = build(name)
    grid = tuple(min(n, 3 if cell.dimensions == 2 else 2) for n in GRIDS[cell.dimensions])
    input, state, sides = draw(cell, grid, batch=2)
    lengths = draw_lengths(cell, grid, 2, seed=3) if grid else None
    parameters = dict(cell.named_parameters())
    tensors = tensors_of(state or ())

    def run(input, *rest):
        values = dict(zip(parameters, rest[len(tensors) :], strict=True))
        given = GridState(*rest[: len(tensors)]) if tensors else None
        output, final = torch.func.functional_call(cell, values, (input, given, lengths, sides))
        return (output, *tensors_of(final or ()))

    arguments = [t.detach().clone().requires_grad_() for t in (input, *tensors, *parameters.values())]
    assert torch.autograd.gradcheck(run, arguments, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", RAGGED)
def test_nan_in_the_padding_reaches_no_output_state_or_gradient(name):
    cell = build(name)
    input, state, sides = draw(cell, batch=4)
    lengths = draw_lengths(cell, input.shape[:-2], 4)
    clean, dirty = input.clone(), input.clone()
    for b, size in enumerate(lengths.reshape(4, -1).tolist()):
        for d, n in enumerate(size):
            clean.movedim(d, 0)[n:].select(-2, b).zero_()
            dirty.movedim(d, 0)[n:].select(-2, b).fill_(float("nan"))
    clean_sides, dirty_sides = ({i: x.clone() for i, x in (sides or {}).items()} for _ in range(2))
    for (i, b), (d, n) in itertools.product(itertools.product(clean_sides, range(4)), enumerate(input.shape[:-2])):
        if d != i:
            size = int(lengths.reshape(4, -1)[b, d])
            assert size <= n
            clean_sides[i].movedim(d - (d > i), 0)[size:].select(-2, b).zero_()
            dirty_sides[i].movedim(d - (d > i), 0)[size:].select(-2, b).fill_(float("nan"))
    wanted = gradients(cell, clean, state, lengths, clean_sides or None)
    close(gradients(cell, dirty, state, lengths, dirty_sides or None), wanted, 0)


@pytest.mark.parametrize("name", ["2d", "2d-wavefront", "3d"])
def test_an_element_alone_without_padding_is_the_element_in_its_batch(name):
    cell = build(name)
    input, state, sides = draw(cell, batch=4)
    lengths = draw_lengths(cell, input.shape[:-2], 4)
    output, _ = cell(input, state, lengths, sides)
    for b, size in enumerate(lengths.reshape(4, -1).tolist()):
        cut = tuple(slice(n) for n in size)
        own = None if state is None else GridState(*(t[cut[1:]][..., b : b + 1, :] for t in state))
        of_sides = {i: x[cut[:i] + cut[i + 1 :]][..., b : b + 1, :] for i, x in (sides or {}).items()} or None
        close(cell(input[cut][..., b : b + 1, :], own, None, of_sides)[0], output[cut][..., b : b + 1, :])


@pytest.mark.parametrize("name", ["1d", "2d", "3d-tied-directions"])
def test_a_permuted_batch_gives_permuted_results(name):
    cell = build(name)
    input, _, sides = draw(cell)
    order = torch.tensor([2, 0, 1])
    turned = None if sides is None else {i: x[..., order, :] for i, x in sides.items()}
    close(cell(input[..., order, :], sides=turned)[0], cell(input, sides=sides)[0][..., order, :])


@pytest.mark.parametrize("name", ONE_DIRECTION)
def test_a_grid_cut_along_its_first_dimension_is_the_whole_grid(name):
    cell = build(name)
    grid = (5, *GRIDS[cell.dimensions][1:])
    input, _, sides = draw(cell, grid)
    output, final = cell(input, None, None, sides)
    pieces, state = [], None
    for start, end in ((0, 2), (2, 2), (2, 3), (3, 5)):
        own = sides
        if sides and 0 not in sides:
            own = {i: x[start:end] for i, x in sides.items()}
        elif sides and start:
            own = None
        piece, state = cell(input[start:end], state, None, own)
        pieces.append(piece)
    close(torch.cat(pieces), output)
    close(tensors_of(state), tensors_of(final))


@pytest.mark.parametrize("name", ["1d", "2d", "2d-wavefront", "3d-tied-directions"])
def test_batch_first_turns_input_and_output(name):
    cell, turned = build(name), build(name, batch_first=True)
    input, state, sides = draw(cell)
    close(turned(input.movedim(-2, 0), state, None, sides)[0].movedim(0, -2), cell(input, state, None, sides)[0])


def test_directions_of_a_turned_image_are_the_other_directions_of_the_image():
    cell = build("3d-tied-directions", directions=[(), (0,)], side_sizes=None)
    swapped = build("3d-tied-directions", directions=[(0,), ()], side_sizes=None)
    swapped.load_state_dict(cell.state_dict())
    input, _, _ = draw(cell)
    close(swapped(input.flip(0))[0].flip(0), cell(input)[0])


def test_a_turned_image_gives_a_turned_output_if_the_dimensions_change_places():
    cell, turned = (build("3d", side_sizes=None, learned_outside=False) for _ in range(2))
    with torch.no_grad():
        columns = torch.cat([torch.arange(H, 2 * H), torch.arange(H), torch.arange(2 * H, 3 * H)])
        rows = torch.cat([torch.arange(4 * H, 8 * H), torch.arange(4 * H), torch.arange(8 * H, 12 * H)])
        turned.weight.copy_(cell.weight[:, rows][..., columns])
        turned.bias.copy_(cell.bias[:, rows])
    input, _, _ = draw(cell)
    close(turned(input.transpose(0, 1))[0].transpose(0, 1), cell(input)[0])


@pytest.mark.parametrize("name", ["2d-tied", "2d-wavefront"])
def test_float32_stays_within_1e_5_of_float64_over_100_steps(name):
    cell = build(name)
    nn.init.uniform_(cell.weight, -0.7, 0.7)
    input, _, _ = draw(cell, (100,))
    wanted = cell(input)[0]
    torch.testing.assert_close(cell.float()(input.float())[0].double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["2d", "2d-wavefront", "3d"])
def test_empty_grids_and_batches_give_empty_outputs(name):
    cell = build(name)
    for grid, batch in (((0, *GRIDS[cell.dimensions][1:]), 2), (GRIDS[cell.dimensions], 0)):
        input, state, sides = draw(cell, grid, batch)
        output, final = cell(input, state, None, sides)
        assert output.shape == (*grid, batch, H)
        if grid[0] == 0:
            close(tuple(final), tuple(state), 0)


def test_a_negative_length_is_the_whole_axis():
    for name in ("2d", "2d-wavefront"):
        cell = build(name)
        input, state, _ = draw(cell)
        spelled = cell(input, state, torch.tensor([5, 2, 5]))
        close(cell(input, state, torch.tensor([-1, 2, -3], dtype=torch.int32))[0], spelled[0], 0)


def test_the_forget_bias_of_depth_begins_at_1():
    cell = GridLSTM(I, H, 2)
    assert (cell.bias[:, cell.form.rows_of(1, "f")] == 1).all()
    assert (cell.bias.abs() <= 1).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2), {}, "input_size is 0; accepted is an integer of at least 1"),
        ((3, 2, 1, 0), {}, "dimensions is 0"),
        ((3, 2), {"tied": 1}, "tied is 1; accepted is True or False"),
        ((3, 2), {"priority": [2]}, "priority has 2; accepted are dimensions 0 to 1"),
        ((3, 2), {"plain": "0"}, "plain is '0'; accepted is a collection of dimensions"),
        ((3, 2), {"activation": "elu"}, "activation is 'elu'; accepted is one of 'identity'"),
        ((3, 2), {"form": "o"}, r"form is 'o'; accepted is one of 'o\*tanh\(m\)', 'tanh\(o\*m\)'"),
        ((3, 2), {"readout": "hm", "plain": [1]}, "readout is 'hm', and depth has no memory"),
        ((3, 2), {"directions": [(1,)]}, "directions has 1; accepted are dimensions 0 to 0"),
        ((3, 2, 1, 1), {"directions": [(0,)]}, "directions has 0; accepted are none"),
        ((3, 2), {"directions": []}, "directions is empty"),
        ((3, 2), {"side_sizes": {1: 2}}, "side_sizes has 1"),
        ((3, 2), {"side_sizes": {0: 0}}, r"side_sizes\[0\] is 0"),
        ((3, 2), {"schedule": "layers", "priority": [0]}, "schedule is 'layers', which needs"),
    ],
)
def test_what_a_grid_is_not_made_of_is_refused_by_name(arguments, options, message):
    with pytest.raises(CellError, match=message):
        GridLSTM(*arguments, **options)


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("2d", {"input": torch.zeros(5, 3)}, r"input has dtype torch.float32; accepted is the parameters'"),
        ("2d", {"input": torch.zeros(5, 3).double()}, r"accepted is \[time, batch, features\] with 3 features"),
        ("3d", {"input": torch.zeros(5, 1, 3).double()}, r"accepted is \[n_1, n_2, batch, features\]"),
        ("2d", {"state": torch.zeros(1)}, r"state is a Tensor; accepted is a tuple \(h, m\)"),
        ("2d", {"state": (torch.zeros(3, 2, 2), None)}, r"state 'h' has shape .*; accepted is \['3', '3', '2'\]"),
        ("2d", {"state": (torch.zeros(3, 3, 2), None)}, "state 'm' is a NoneType; accepted is a tensor"),
        ("1d", {"state": (torch.zeros(3, 2), None)}, "accepted is None where depth is the only dimension"),
        ("2d-directions", {"state": ()}, "accepted is None with several directions"),
        ("1d", {"lengths": torch.tensor([1])}, "accepted is None where depth is the only dimension"),
        ("2d", {"lengths": torch.tensor([6, 1, 1])}, "lengths have the value 6; accepted is 0 to 5"),
        ("2d", {"sides": {0: torch.zeros(3, 4)}}, r"sides has data for dimension 0; accepted are those of \[\]"),
        ("2d-depth-last", {"sides": {0: torch.zeros(3, 5).double()}}, "with 4 features"),
        (
            "2d-depth-last",
            {"sides": {0: torch.zeros(2, 4).double()}},
            r"shape \[2, 4\]; accepted is \[3\] and features",
        ),
    ],
)
def test_what_a_grid_is_not_called_with_is_refused_by_name(name, call, message):
    cell = build(name)
    with pytest.raises(CellError, match=message):
        cell(**{"input": draw(cell)[0], **call})


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid"])
@pytest.mark.parametrize("plain", [(), (1,)], ids=["memory", "plain"])
def test_a_block_is_said_to_keep_zeros_if_it_does(plain, activation):
    form = GridForm(2, 3, (), plain, activation)
    block = GridProducts(form, torch.randn(form.rows, 6), None)
    found = block(torch.zeros(1, 6), torch.zeros(1, 3 * len(form.memory)))
    assert keeps_zeros(form) == (not any(each.any() for each in found))


# torch's own tracer, at its first use
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"plain": [0], "readout": "hm"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"tied": True, "priority": [2]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_exported_grid_of_ragged_images_gives_the_output_and_the_state_of_the_module(options):
    """An export shifts h and m of each dimension by themselves."""

    class Stateless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.grid = GridLSTM(2, 3, 2, dimensions=3, dtype=torch.float64, **options)

        def forward(self, x, lengths):
            output, state = self.grid(x, None, lengths)
            return [each for each in (output, *state) if each is not None]

    module = Stateless().eval()
    height, width, batch = torch.export.Dim("height"), torch.export.Dim("width"), torch.export.Dim("batch")
    example = (torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.tensor([[3, 2], [1, 4]]))
    shapes = ({0: height, 1: width, 2: batch}, {0: batch})
    program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    x = torch.randn(4, 3, 3, 2, dtype=torch.float64)
    lengths = torch.tensor([[4, 3], [0, 3], [2, 1]])
    found = program.module()(x, lengths)
    torch.testing.assert_close(found, module(x, lengths), rtol=0, atol=1e-14)
