"""Exact reductions of one cell to another (specification, section 8b) and what saturated gates must do."""

import pytest
import torch

from cellport.cells import GRU, LSTM, SRU, LayerNormLSTM

from .cases import draw


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-14, atol=1e-14)


def sru(input_size=4, **options):
    cell = SRU(input_size, 4, **options).double()
    with torch.no_grad():
        cell.rnn_lst[0].bias.copy_(torch.linspace(-1, 1, 8))
    return cell


def test_sru_version_2_without_peepholes_is_version_1():
    second, first = sru(rescale=False), sru(version=1)
    second.rnn_lst[0].weight_c.data.zero_()
    first.load_state_dict(second.state_dict())
    input, state = draw(first, 5, 2)
    close(second(input, state), first(input, state))


def test_sru_version_1_is_the_inclusive_scan_of_its_linear_steps():
    cell = sru(version=1, skip=False)
    input, state = draw(cell, 7, 2)
    layer = cell.rnn_lst[0]
    u = (input @ layer.weight).view(7, 2, 4, 3)
    factor = torch.sigmoid(u[..., 1] + layer.bias[:4])
    term = (1 - factor) * u[..., 0]
    shift = 1
    while shift < 7:  # Hillis and Steele: three passes for seven steps
        term = torch.cat([term[:shift], factor[shift:] * term[:-shift] + term[shift:]])
        factor = torch.cat([factor[:shift], factor[shift:] * factor[:-shift]])
        shift *= 2
    close(cell(input, state)[1][0], factor[-1] * state[0] + term[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sru_keeps_its_state_where_the_forget_gate_is_open(dtype):
    cell = sru().to(dtype)
    cell.rnn_lst[0].bias.data[:4] = float("inf")
    input, state = draw(cell, 5, 2)
    assert torch.equal(cell(input.to(dtype), state.to(dtype))[1], state.to(dtype))


def test_sru_state_is_the_candidate_where_the_forget_gate_is_shut():
    cell = sru()
    layer = cell.rnn_lst[0]
    layer.bias.data[:4] = -float("inf")
    input, state = draw(cell, 5, 2)
    close(cell(input, state)[1][0], (input[-1] @ layer.weight).view(2, 4, 3)[..., 0])


def test_sru_output_is_the_skip_where_the_reset_gate_is_shut():
    cell = sru(highway_bias=-2.0)
    layer = cell.rnn_lst[0]
    layer.bias.data[4:] = -float("inf")
    input, state = draw(cell, 5, 2)
    close(cell(input, state)[0], layer.scale_x * input)


def test_gru_holds_its_state_where_the_update_gate_is_open():
    cell = GRU(3, 4).double()
    cell.bias_ih_l0.data[4:8] = float("inf")
    input, state = draw(cell, 5, 2)
    close(cell(input, state)[1], state)


def test_gru_forms_agree_where_the_recurrent_candidate_weight_is_diagonal_without_bias():
    after, before = GRU(3, 4).double(), GRU(3, 4, reset_after=False).double()
    with torch.no_grad():
        after.weight_hh_l0[8:] = torch.diag(torch.linspace(-1, 1, 4, dtype=torch.float64))
        after.bias_hh_l0[8:] = 0
    before.load_state_dict(after.state_dict())
    input, state = draw(after, 5, 2)
    close(before(input, state), after(input, state))


def test_gru_forms_differ_where_it_is_not():
    after, before = GRU(3, 4).double(), GRU(3, 4, reset_after=False).double()
    before.load_state_dict(after.state_dict())
    input, state = draw(after, 5, 2)
    assert (before(input, state)[0] - after(input, state)[0]).abs().max() > 1e-3


def test_lstm_cell_grows_by_at_most_one_a_step():
    cell = LSTM(3, 4).double()
    input, state = draw(cell, 20, 2)
    _, final = cell(100 * input, state)
    assert (final.c.abs() <= state.c.abs() + 20).all()


def test_lstm_whose_projection_selects_units_is_the_lstm_of_these_units():
    """W_hr = [I 0]: as torch's, a projection has fewer features than units; those left out are read by no one."""
    wide, narrow = LSTM(3, 5, proj_size=3).double(), LSTM(3, 3).double()
    with torch.no_grad():
        for name, value in narrow.named_parameters():
            wide.get_parameter(name).unflatten(0, (4, 5))[:, :3] = value.unflatten(0, (4, 3))
        wide.weight_hr_l0.copy_(torch.eye(3, 5))
    input, (h, c) = draw(wide, 5, 2)
    lengths = torch.tensor([5, 2])
    output, final = wide(input, (h, c), lengths)
    wanted, (last, memory) = narrow(input, (h, c[..., :3]), lengths)
    close((output, final.h, final.c[..., :3]), (wanted, last, memory))


@pytest.mark.parametrize("proj_size", [0, 2])
def test_lstm_with_peepholes_of_0_is_the_lstm(proj_size):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": proj_size}
    plain, peephole = LSTM(3, 4, **options).double(), LSTM(3, 4, peephole=True, **options).double()
    zeros = {name: torch.zeros_like(value) for name, value in peephole.state_dict().items() if "peephole" in name}
    peephole.load_state_dict(plain.state_dict() | zeros)
    input, state = draw(plain, 5, 2)
    lengths = torch.tensor([5, 2])
    close(peephole(input, state, lengths), plain(input, state, lengths))


@pytest.mark.parametrize("peephole", [False, True])
def test_coupled_lstm_is_the_lstm_whose_forget_gate_has_the_input_gates_weights_negated(peephole):
    """1 - s(a) = s(-a)."""
    coupled, plain = (LSTM(3, 4, coupled=each, peephole=peephole).double() for each in (True, False))
    spread = {}
    for name, value in coupled.state_dict().items():
        blocks = value.chunk(2 if "peephole" in name else 3)
        spread[name] = torch.cat([blocks[0], -blocks[0], *blocks[1:]])
    plain.load_state_dict(spread)
    input, state = draw(plain, 5, 2)
    close(coupled(input, state), plain(input, state))


def test_coupled_lstm_keeps_its_cell_where_the_input_gate_is_shut():
    cell = LSTM(3, 4, coupled=True).double()
    cell.bias_ih_l0.data[:4] = -float("inf")
    input, state = draw(cell, 5, 2)
    close(cell(input, state)[1].c, state.c)


def test_layer_norm_lstm_does_not_see_the_scale_of_its_weights():
    """What layer normalisation is for: LN(a W x) = LN(W x), but for eps."""
    cell, scaled = (LayerNormLSTM(3, 4, eps=1e-300).double() for _ in range(2))
    scaled.load_state_dict(
        {name: value * 7 if name.startswith("weight") else value for name, value in cell.state_dict().items()}
    )
    input, state = draw(cell, 5, 2)
    close(scaled(input, state), cell(input, state))


@pytest.mark.slow
def test_sru_does_not_drift_over_10000_steps():
    cell = sru(version=1)
    input, state = draw(cell, 10_000, 1)
    single = sru(version=1).float()
    single.load_state_dict(cell.state_dict())
    output, _ = cell(input, state)
    torch.testing.assert_close(single(input.float(), state.float())[0].double(), output, rtol=1e-5, atol=1e-5)
