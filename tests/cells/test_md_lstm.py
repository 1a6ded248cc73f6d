"""MDRNN and MDLSTM compute section 5 of the specification, in every cell, direction and layout, and train."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellport.cells import LSTM, MDLSTM, MDRNN, RNN, CellError
from cellport.cells.md_forms import MEMORY_CELLS, MemoryForm

from .grid_oracle import md_lstm, md_rnn, raster

I, H = 2, 3
GRID = (3, 4, 2)
SIZES = torch.tensor([[3, 4, 2], [2, 1, 2], [0, 3, 1], [1, 4, 2]])
PEEPHOLED = ("standard", "halved", "ratio_leaky")


def build(dimensions=2, seed=0, kind=MDLSTM, **options):
    layer = kind(I, H, dimensions=dimensions, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def draw(grid, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*grid, batch, I, generator=generator, dtype=torch.float64)


def dirty(x, sizes, value=float("nan")):
    x = x.clone()
    for b, size in enumerate(sizes.tolist()):
        for d, n in enumerate(size):
            x[(slice(None),) * d + (slice(n, None),) + (slice(None),) * (len(size) - 1 - d) + (b,)] = value
    return x


def expected(layer, x, sizes=None):
    """H and s (of an MDRNN h alone) from plain loops, with the features of all directions."""
    N, batch = layer.dimensions, x.shape[-2]
    grid = x.shape[:N]
    memory = isinstance(layer, MDLSTM)
    width = H * (1 + memory)
    found = np.zeros((*grid, batch, layer.num_directions, width))
    for k, (flip, suffix) in enumerate(zip(layer.flips, layer.suffixes(), strict=True)):
        weights = {
            name.removesuffix(suffix): value.detach().numpy()
            for name, value in layer.named_parameters()
            if name.endswith(suffix) and (suffix or "_flip" not in name)
        }
        weights.setdefault("bias", np.zeros(len(weights["weight_ih"])))
        position = md_lstm(weights, layer.cell, "tanh" if layer.form.tanh_output else "identity") if memory else (
            md_rnn(weights, layer.nonlinearity)
        )  # fmt: skip
        outside = (np.zeros(H), np.zeros(H)) if memory else np.zeros(H)
        for b in range(batch):
            size = list(grid) if sizes is None else sizes[b].tolist()
            _, outputs = raster(position, outside, x[(slice(None),) * N + (b,)].numpy(), size, flip=flip)
            for p, value in outputs.items():
                found[(*p, b, k)] = value
    return [part.reshape(*grid, batch, layer.num_directions * H) for part in np.split(found, 1 + memory, -1)]


def close(actual, wanted, tolerance=1e-12):
    wanted = torch.as_tensor(wanted) if isinstance(wanted, np.ndarray) else wanted
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole", "ragged"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("cell", MEMORY_CELLS)
def test_output_and_memory_are_the_oracles(cell, dimensions, sizes):
    sizes = None if sizes is None else sizes[:, :dimensions]
    for peepholes in (False, True) if cell in PEEPHOLED else (False,):
        layer = build(dimensions, cell=cell, peepholes=peepholes)
        x = draw(GRID[:dimensions])
        h, s = layer.forward_with_memory(x if sizes is None else dirty(x, sizes), sizes)
        for actual, wanted in zip((h, s), expected(layer, x, sizes), strict=True):
            close(actual.detach(), wanted)


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["whole", "ragged"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_mdrnns_output_is_the_oracles(nonlinearity, dimensions, sizes):
    sizes = None if sizes is None else sizes[:, :dimensions]
    layer = build(dimensions, kind=MDRNN, nonlinearity=nonlinearity)
    x = draw(GRID[:dimensions])
    close(layer(x, sizes).detach(), expected(layer, x, sizes)[0])


@pytest.mark.parametrize("options", [{"bias": False}, {"cell": "leaky", "output": "identity"}], ids=str)
def test_options_are_the_oracles(options):
    layer = build(**options)
    x = draw(GRID[:2])
    close(layer(x).detach(), expected(layer, x)[0])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_shape_and_any_directions_are_the_oracles(data):
    grid = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    batch = data.draw(st.integers(1, 3))
    directions = data.draw(st.integers(1, 2 ** len(grid)))
    layer = build(len(grid), cell=data.draw(st.sampled_from(MEMORY_CELLS)), directions=directions)
    sizes = torch.tensor([[data.draw(st.integers(0, n)) for n in grid] for _ in range(batch)])
    x = draw(grid, batch)
    close(layer(dirty(x, sizes), sizes).detach(), expected(layer, x, sizes)[0])


def formula(start, *shape):
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.4 * torch.sin(1.3 * (n + start) + 0.2)).reshape(shape)


@pytest.mark.parametrize(
    ("cell", "wanted_h", "wanted_s"),
    [
        (
            "standard",
            "-0.2003382107 -0.0493066751 -0.1076466187 -0.1839246480 "
            "-0.1262430732 -0.0826598993 -0.3055753681 -0.1655669858",
            "-0.3330736215 -0.1027528797 -0.1883580244 -0.2981336074 "
            "-0.2614116551 -0.1218849430 -0.5422073607 -0.3559071603",
        ),
        (
            "ratio_leaky",
            "-0.2003382107 -0.0493066751 -0.0493856959 -0.1731636003 "
            "-0.0841647162 -0.0723215637 -0.2432121574 -0.0923621549",
            "-0.3330736215 -0.1027528797 -0.0856150752 -0.2797347554 "
            "-0.1720947508 -0.1065167587 -0.4190833703 -0.1933665066",
        ),
    ],
)
def test_the_specifications_vectors(cell, wanted_h, wanted_s):
    layer = MDLSTM(2, 2, directions="forward", cell=cell, dtype=torch.float64)
    layer.load_state_dict({"weight_ih": formula(0, 10, 2), "weight_hh": formula(20, 2, 10, 2), "bias": formula(60, 10)})
    x = torch.cos(0.9 * torch.arange(8, dtype=torch.float64) + 0.1).reshape(2, 2, 1, 2)
    for actual, wanted in zip(layer.forward_with_memory(x), (wanted_h, wanted_s), strict=True):
        np.testing.assert_allclose(actual.detach().flatten(), np.array(wanted.split(), float), rtol=0, atol=5e-11)


def test_one_dimension_is_an_lstm():
    """Blocks i, f, g, o, and a bias that is the sum of both; two directions are a bidirectional layer."""
    layer, lstm = build(1), LSTM(I, H, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in (("", ""), ("_flip0", "_reverse")):
            getattr(lstm, f"weight_ih_l0{theirs}").copy_(getattr(layer, f"weight_ih{ours}"))
            getattr(lstm, f"weight_hh_l0{theirs}").copy_(getattr(layer, f"weight_hh{ours}")[0])
            getattr(lstm, f"bias_ih_l0{theirs}").copy_(getattr(layer, f"bias{ours}"))
            getattr(lstm, f"bias_hh_l0{theirs}").zero_()
    x, lengths = draw((6,)), torch.tensor([6, 2, 0, 5])
    close(layer(x, lengths[:, None]), lstm(x, None, lengths)[0], 1e-15)


def test_an_image_of_one_row_is_an_lstm_along_it():
    """Without the block of f_1, and with R_2 alone."""
    layer, lstm = build(directions="forward"), LSTM(I, H, dtype=torch.float64)
    keep = torch.cat([torch.arange(H), torch.arange(2 * H, 5 * H)])
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(layer.weight_ih[keep])
        lstm.weight_hh_l0.copy_(layer.weight_hh[1][keep])
        lstm.bias_ih_l0.copy_(layer.bias[keep])
        lstm.bias_hh_l0.zero_()
    x = draw((1, 7))
    close(layer(x)[0], lstm(x[0])[0], 1e-15)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_stable_cell_that_looks_along_one_axis_is_an_lstm_along_it(axis):
    """Lambda is 1 or 0, and the other axis' R is 0."""
    layer, lstm = build(directions="forward", cell="stable"), LSTM(I, H, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_ih[-H:] = 0
        layer.weight_hh[:, -H:] = 0
        layer.bias[-H:] = 1e3 if axis == 0 else -1e3
        layer.weight_hh[1 - axis] = 0
        lstm.weight_ih_l0.copy_(layer.weight_ih[: 4 * H])
        lstm.weight_hh_l0.copy_(layer.weight_hh[axis, : 4 * H])
        lstm.bias_ih_l0.copy_(layer.bias[: 4 * H])
        lstm.bias_hh_l0.zero_()
    x = draw((3, 4))
    other = x.transpose(0, 1) if axis else x
    wanted = lstm(other.flatten(1, 2))[0].reshape(*other.shape[:3], H)
    close(layer(x), wanted.transpose(0, 1) if axis else wanted, 1e-14)


def swap(layer):
    """The layer with dimensions 1 and 2 swapped: the blocks f_1 and f_2, R_1 and R_2, and what directions flip."""
    other = build(directions=layer.num_directions)
    order = torch.cat([torch.arange(H), torch.arange(2 * H, 3 * H), torch.arange(H, 2 * H), torch.arange(3 * H, 5 * H)])
    names = {"": "", "_flip0": "_flip1", "_flip1": "_flip0", "_flip01": "_flip01"}
    with torch.no_grad():
        for suffix in layer.suffixes():
            getattr(other, f"weight_ih{names[suffix]}").copy_(getattr(layer, f"weight_ih{suffix}")[order])
            getattr(other, f"weight_hh{names[suffix]}").copy_(getattr(layer, f"weight_hh{suffix}")[[1, 0]][:, order])
            getattr(other, f"bias{names[suffix]}").copy_(getattr(layer, f"bias{suffix}")[order])
    return other


def test_a_transposed_image_with_its_dimensions_swapped_gives_the_transposed_output():
    layer, x, sizes = build(), draw((3, 4)), SIZES[:, :2]
    found = swap(layer)(x.transpose(0, 1), sizes.flip(1)).transpose(0, 1)
    wanted = layer(x, sizes).unflatten(-1, (4, H))[..., [0, 2, 1, 3], :].flatten(-2)
    close(found, wanted, 1e-14)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_flipped_image_gives_the_flipped_output_with_directions_permuted(axis):
    layer, x = build(), draw((3, 4))
    other = build()
    pairs = {0: {"": "_flip0", "_flip1": "_flip01"}, 1: {"": "_flip1", "_flip0": "_flip01"}}[axis]
    permuted = {**pairs, **{b: a for a, b in pairs.items()}}
    with torch.no_grad():
        for name, value in layer.named_parameters():
            base, _, flip = name.partition("_flip")
            getattr(other, base + permuted["_flip" + flip if flip else ""]).copy_(value)
    order = [layer.suffixes().index(permuted[suffix]) for suffix in layer.suffixes()]
    found = other(x.flip(axis)).flip(axis).unflatten(-1, (4, H))[..., order, :].flatten(-2)
    close(found, layer(x), 0)


@pytest.mark.parametrize("directions", [2, "all"])
def test_directions_together_are_each_direction_alone(directions):
    layer, x, sizes = build(directions=directions), draw((3, 4)), SIZES[:, :2]
    output = layer(x, sizes).unflatten(-1, (layer.num_directions, H))
    for k, (flip, suffix) in enumerate(zip(layer.flips, layer.suffixes(), strict=True)):
        alone = build(directions="forward")
        alone.load_state_dict({name: getattr(layer, name + suffix) for name in ("weight_ih", "weight_hh", "bias")})
        for b, size in enumerate(sizes.tolist()):
            image = x[: size[0], : size[1], b : b + 1]
            close(output[: size[0], : size[1], b : b + 1, k], alone(image.flip(flip)).flip(flip), 1e-14)


def test_summed_directions_are_the_sum_of_the_concatenated_ones():
    x = draw((3, 4))
    concatenated = build()(x).unflatten(-1, (4, H))
    summed = build(combine="sum")
    close(summed(x), concatenated.sum(-2), 1e-15)
    assert summed.output_size == H


@pytest.mark.parametrize("cell", MEMORY_CELLS)
def test_gradients_are_finite_differences(cell):
    layer = build(cell=cell, directions=2, peepholes=cell in PEEPHOLED)
    parameters = {name: p.detach().clone() for name, p in layer.named_parameters()}
    sizes = torch.tensor([[2, 3], [1, 2]])

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x, sizes))

    arguments = [t.clone().requires_grad_() for t in (draw((2, 3), 2), *parameters.values())]
    assert torch.autograd.gradcheck(run, arguments, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("cell", MEMORY_CELLS)
def test_nan_in_the_padding_reaches_no_output_and_no_gradient(cell):
    layer, x, sizes = build(cell=cell), draw((3, 4)), SIZES[:, :2]

    def run(padding):
        image = dirty(x, sizes, padding).requires_grad_()
        output = layer(image, sizes)
        loss = (output * torch.arange(output.numel()).reshape(output.shape).cos()).sum()
        return output, *torch.autograd.grad(loss, [image, *layer.parameters()])

    for found, wanted in zip(run(float("nan")), run(0.0), strict=True):
        close(found, wanted, 0)


@pytest.mark.parametrize("cell", MEMORY_CELLS)
def test_an_image_alone_is_the_image_in_its_padded_batch_with_its_gradient(cell):
    layer, x, sizes = build(cell=cell), draw((3, 4)), SIZES[:, :2]
    output = layer(dirty(x, sizes), sizes)
    padded = torch.autograd.grad(output[..., 0, :].sin().sum(), list(layer.parameters()))
    for b, (height, width) in enumerate(sizes.tolist()):
        alone = layer(x[:height, :width, b : b + 1])
        close(alone, output[:height, :width, b : b + 1], 1e-14)
        assert not output[height:, :, b].any()
        assert not output[:, width:, b].any()
        if b == 0:
            close(torch.autograd.grad(alone.sin().sum(), list(layer.parameters())), padded, 1e-12)


def test_negative_sizes_are_the_whole_axis():
    layer, x = build(), draw((3, 4), 2)
    close(layer(x, torch.tensor([[-1, 2], [3, -5]])), layer(x, torch.tensor([[3, 2], [3, 4]])), 0)


def test_batch_first_turns_input_and_output():
    x, sizes = draw((3, 4)), SIZES[:, :2]
    found = build(batch_first=True)(x.movedim(2, 0), sizes)
    close(found.movedim(0, 2), build()(x, sizes), 0)


@pytest.mark.parametrize("grid", [(0, 4), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("batch", [0, 1])
def test_empty_images_and_batches_give_empty_outputs(grid, batch):
    layer = build()
    assert layer(draw(grid, batch)).shape == (*grid, batch, 4 * H)
    assert not layer(draw(grid, batch), torch.zeros(batch, 2, dtype=torch.int64)).any()


def test_float32_stays_within_1e_5_of_the_oracle_on_an_image_of_30_by_30():
    layer, x = build(cell="leaky_lp"), draw((30, 30), 1)
    wanted = expected(layer, x)[0]
    np.testing.assert_allclose(layer.float()(x.float()).detach(), wanted, rtol=1e-5, atol=1e-5)


def test_open_forget_gates_count_paths_in_the_standard_cell_and_not_in_the_others():
    """The number of paths to the far corner of 10 x 10 is 48,620."""
    x = torch.zeros(10, 10, 1, 1, dtype=torch.float64)
    x[0, 0] = 1
    for cell, wanted in (("standard", 48620), ("halved", 48620 / 2**18)):
        layer = MDLSTM(1, 1, cell=cell, directions="forward", dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.bias[:3] = 40.0
            layer.weight_ih[3] = 40.0
        assert layer.forward_with_memory(x).s[-1, -1].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("cell", ["stable", "leaky", "leaky_lp", "ratio_leaky"])
def test_a_stabilised_memory_stays_bounded_where_the_standard_one_explodes(cell):
    def largest(kind):
        torch.manual_seed(0)
        layer = MDLSTM(1, 4, cell=kind, directions="forward", dtype=torch.float64)
        with torch.no_grad():
            for block, rows in zip(layer.form.blocks, layer.bias.split(4), strict=True):
                if block.startswith("f"):
                    rows.fill_(4.0)
        return layer.forward_with_memory(torch.randn(20, 20, 1, 1, dtype=torch.float64)).s.abs().max()

    assert largest("standard") > 1e6
    # i g + f m adds up to 1 / (1 - sigmoid(4)) = 55.6 along a path, the others are means of what they see.
    assert largest(cell) < (56 if cell == "stable" else 1)


def test_ratio_leaky_gates_that_underflow_keep_the_memory_finite():
    layer = MDLSTM(1, 2, cell="ratio_leaky", directions="forward")
    with torch.no_grad():
        layer.bias[2:6] = -200.0
    x = torch.randn(3, 3, 1, 1)
    output = layer(x)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_forget_gates_of_the_standard_cell_start_so_that_they_sum_to_1(dimensions):
    layer = MDLSTM(I, H, dimensions=dimensions)
    forget = dict(zip(layer.form.blocks, layer.bias.split(H), strict=True))["f_1"]
    if dimensions == 1:
        assert (forget == 1).all()
    else:
        torch.testing.assert_close(torch.sigmoid(forget), torch.full((H,), 1 / dimensions))


def test_a_layer_learns_which_corner_holds_the_bright_pixel():
    torch.manual_seed(0)
    layer, head = MDLSTM(1, 4, cell="leaky_lp"), nn.Linear(16, 4)
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.03)
    for _ in range(50):
        x, corner = torch.zeros(3, 3, 16, 1), torch.randint(4, (16,))
        x[corner // 2 * 2, corner % 2 * 2, torch.arange(16)] = 1
        loss = nn.functional.cross_entropy(head(layer(x).mean((0, 1))), corner)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "gru"}, "cell is 'gru'; accepted: 'standard', 'halved'"),
        ({"cell": "leaky", "peepholes": True}, "peepholes=True with the cell 'leaky'; accepted: 'standard'"),
        ({"output": "identity"}, "output is 'identity' of the cell 'standard'"),
        ({"directions": 5}, "directions is 5; accepted: 'all', 'forward', or 1 to 4"),
        ({"directions": "both"}, "directions is 'both'"),
        ({"directions": True}, "directions is True"),
        ({"combine": "mean"}, "combine is 'mean'; accepted: 'concat', 'sum'"),
        ({"dimensions": 0}, "dimensions is 0; accepted is an integer of at least 1"),
        ({"batch_first": 1}, "batch_first is 1; accepted is True or False"),
    ],
)
def test_an_option_that_is_not_accepted_is_named(options, message):
    with pytest.raises(CellError, match=message):
        MDLSTM(2, 3, **options)


@pytest.mark.parametrize(
    ("x", "sizes", "message"),
    [
        (torch.zeros(3, 4, 2), None, r"shape \[3, 4, 2\]; accepted is \[n_1, n_2, batch, features\] with 2 features"),
        (torch.zeros(3, 4, 1, 3), None, r"shape \[3, 4, 1, 3\]; accepted"),
        (torch.zeros(3, 4, 1, 2).double(), None, "dtype torch.float64; accepted is the parameters' torch.float32"),
        (torch.zeros(3, 4, 1, 2), torch.tensor([[4, 4]]), "value 4 in column 0; accepted is 0 to 3"),
        (torch.zeros(3, 4, 1, 2), torch.tensor([3]), r"sizes have shape \['1'\]; accepted is \[batch, 2\]"),
        (torch.zeros(3, 4, 1, 2), torch.tensor([[3.0, 4.0]]), "sizes have dtype torch.float32"),
    ],
)
def test_an_input_that_is_not_accepted_is_named(x, sizes, message):
    with pytest.raises(CellError, match=message):
        MDLSTM(2, 3)(x, sizes)


def test_nonlinearities_that_the_mdrnn_does_not_have_are_named():
    with pytest.raises(CellError, match="nonlinearity is 'sigmoid'; accepted: 'tanh', 'relu'"):
        MDRNN(2, 3, nonlinearity="sigmoid")


def test_one_dimension_of_the_mdrnn_is_an_rnn():
    layer, rnn = build(1, kind=MDRNN), RNN(I, H, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in (("", ""), ("_flip0", "_reverse")):
            getattr(rnn, f"weight_ih_l0{theirs}").copy_(getattr(layer, f"weight_ih{ours}"))
            getattr(rnn, f"weight_hh_l0{theirs}").copy_(getattr(layer, f"weight_hh{ours}")[0])
            getattr(rnn, f"bias_ih_l0{theirs}").copy_(getattr(layer, f"bias{ours}"))
            getattr(rnn, f"bias_hh_l0{theirs}").zero_()
    x, lengths = draw((6,)), torch.tensor([6, 2, 0, 5])
    close(layer(x, lengths[:, None]), rnn(x, None, lengths)[0], 1e-15)


def test_gradients_of_the_mdrnn_are_finite_differences():
    layer, sizes = build(kind=MDRNN), torch.tensor([[3, 4], [2, 1]])
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, sizes))

    arguments = [t.detach().clone().requires_grad_() for t in (draw((3, 4), 2), *layer.parameters())]
    assert torch.autograd.gradcheck(run, arguments, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", [MDRNN, MDLSTM])
def test_a_permuted_batch_gives_permuted_outputs(kind):
    layer, x, sizes, order = build(kind=kind), draw((3, 4)), SIZES[:, :2], torch.tensor([2, 0, 3, 1])
    close(layer(x[:, :, order], sizes[order]), layer(x, sizes)[:, :, order], 1e-14)


@pytest.mark.parametrize("kind", [MDRNN, MDLSTM])
def test_one_feature_and_one_unit_at_one_position_are_the_equations(kind):
    layer = kind(1, 1, dtype=torch.float64, directions="forward")
    x = torch.tensor([[[[0.7]]]], dtype=torch.float64)
    a = (layer.weight_ih * 0.7).flatten() + layer.bias
    wanted = torch.tanh(a)
    if kind is MDLSTM:
        i, _, _, g, o = a
        wanted = torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g))
    close(layer(x).flatten(), wanted.reshape(1), 1e-15)


@pytest.mark.parametrize("cell", MEMORY_CELLS)
def test_memory_on_an_image_of_64_by_64_stays_below_what_its_gates_allow(cell):
    """A mean adds nothing; a decay by at most f adds up to 1 / (1 - f). The standard cell sums over paths instead."""
    torch.manual_seed(0)
    x = torch.randn(64, 64, 1, I, dtype=torch.float64)
    layer = MDLSTM(I, 4, cell=cell, directions="forward", dtype=torch.float64)
    with torch.no_grad():
        memory = layer.forward_with_memory(x).s.abs().max().item()
        greatest = layer.bias + layer.weight_ih.abs() @ x.abs().amax((0, 1, 2)) + layer.weight_hh.abs().sum((0, 2))
    forget = [a for a, block in zip(greatest.split(4), layer.form.blocks, strict=True) if block.startswith("f")]
    gate = torch.sigmoid(torch.stack(forget)).max().item()
    if cell == "standard":
        assert memory > 50
    else:
        assert memory < (1 / (1 - gate) if cell in ("halved", "stable") else 1)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    ("cell", "peepholes"), [*((cell, False) for cell in MEMORY_CELLS), ("standard", True), ("ratio_leaky", True)]
)
def test_every_memory_cell_makes_zeros_of_zeros(cell, peepholes, dimensions):
    """Exported files rely on it: the slots of an anti-diagonal that hold no position are not held at zero."""
    form = MemoryForm(cell, dimensions, 2)
    weights = torch.randn(2 * dimensions + 1, 1, 2) if peepholes else None
    zeros = [torch.zeros(1, 2) for _ in range(dimensions)]
    for found in form(torch.zeros(1, len(form.blocks) * 2), zeros, weights):
        assert not found.any()
