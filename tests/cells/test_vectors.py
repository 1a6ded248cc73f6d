"""The specification's published test vectors (section 8), to the ten digits they are printed with."""

import math

import pytest
import torch

from cellport.cells import GRU, LSTM, RNN, SRU, LSTMState

from .cases import tensors_of

ALPHA_MINUS_2 = {"highway_bias": -2.0}  # scale_x = 1.1272403

LSTM_ONE_WIDE = LSTM(2, 1, num_layers=2, bidirectional=True)

VECTORS = [
    pytest.param(
        RNN(2, 2),
        "0.1609574917 0.0829908910 -0.5155281910 0.4297685637 -0.0154752880 -0.1320755436",
        {},
        id="rnn-tanh",
    ),
    pytest.param(
        RNN(2, 2, nonlinearity="relu"), "0.1623694984 0.0831822152 0 0.4601810965 0 0.0726791605", {}, id="rnn-relu"
    ),
    pytest.param(
        LSTM(2, 2),
        "-0.0305074312 0.0699986279 0.1080380518 -0.0560657750 0.1578531435 -0.0772230917",
        {"c": "0.3987325037 -0.1567482185"},
        id="lstm",
    ),
    pytest.param(
        LSTM(2, 3, proj_size=1),
        "-0.0259632171 0.0043526071 0.0203451470",
        {"c": "0.0602454024 0.0146487506 -0.1036691749"},
        id="lstm-projected",
    ),
    pytest.param(
        GRU(2, 2),
        "-0.3701490519 0.3463496456 -0.1215381516 0.0500981505 -0.0344391929 0.0740555526",
        {},
        id="gru-reset-after",
    ),
    pytest.param(
        GRU(2, 2, reset_after=False),
        "-0.3505826806 0.3899385368 -0.0424421969 0.1140292207 0.0522076314 0.1804987075",
        {},
        id="gru-reset-before",
    ),
    pytest.param(
        LSTM_ONE_WIDE,
        "0.0765056476 0.1928708230 0.1107748925 0.1657778753 0.1330399049 0.1079319880",
        {
            "h": "-0.1646362420 -0.0009148750 0.1330399049 0.1928708230",
            "c": "-0.3870105765 -0.0013774034 0.2076270639 0.3684020958",
        },
        id="lstm-stacked-bidirectional",
    ),
    pytest.param(
        SRU(2, 2, **ALPHA_MINUS_2),
        "0.7251319635 0.1137766604 -0.2553956051 -0.6588969179 -0.6312740644 0.0058514332",
        {"c": "-0.1226199912 0.1763620154"},
        id="sru-v2",
    ),
    pytest.param(
        SRU(2, 2, version=1, rescale=False),
        "0.6090533111 -0.0102394536 -0.2402847397 -0.4470228669 -0.5349250772 0.0596947610",
        {"c": "-0.1343773257 0.2119043560"},
        id="sru-v1",
    ),
    pytest.param(
        SRU(2, 2, activation="tanh", rescale=False),
        "0.6472425474 0.0874141666 -0.2333106902 -0.5821659919 -0.5651725472 0.0130986566",
        {"c": "-0.1226199912 0.1763620154"},
        id="sru-v2-tanh",
    ),
    pytest.param(
        SRU(2, 2, bidirectional=True),
        "-0.1197161348 -0.0890255158 0.0111399958 0.1880548590 0.0060811809 0.0450112319 0.1371909325 -0.0842249805 "
        "0.0728544569 0.0257972010 -0.0956843869 -0.1408591914",
        {"c": "-0.0984691624 0.0485381607 -0.1659928385 -0.0618290705"},
        id="sru-v2-bidirectional",
    ),
]


def sine_parameters(cell):
    """0.4 sin(1.3 (n + k0) + 0.2) at flat index n, k0 running over all trained parameters in order."""
    offset = 0
    for parameter in cell.parameters():
        if parameter.requires_grad:
            n = torch.arange(offset, offset + parameter.numel(), dtype=torch.float64)
            parameter.data = (0.4 * torch.sin(1.3 * n + 0.2)).reshape(parameter.shape)
            offset += parameter.numel()


def numbers(text):
    return torch.tensor([float(number) for number in text.split()], dtype=torch.float64)


@pytest.mark.parametrize(("cell", "output", "states"), VECTORS)
def test_the_published_vectors_come_out(cell, output, states):
    cell = cell.double()
    sine_parameters(cell)
    if isinstance(cell, SRU) and cell.rnn_lst[0].highway_bias == -2:
        cell.rnn_lst[0].scale_x.fill_(1.1272403001785278)
    input = torch.cos(0.9 * torch.arange(6, dtype=torch.float64) + 0.1).reshape(3, 1, 2)
    actual, final = cell(input)
    torch.testing.assert_close(actual.flatten(), numbers(output), rtol=0, atol=6e-11)
    for name, tensor in zip(cell.state_names, tensors_of(final), strict=True):
        if name in states:
            torch.testing.assert_close(tensor.flatten(), numbers(states[name]), rtol=0, atol=6e-11)


def test_alpha_is_the_constant_of_the_initial_highway_bias():
    layer = SRU(2, 2, **ALPHA_MINUS_2).rnn_lst[0]
    assert layer.scale_x.item() == pytest.approx(math.sqrt(1 + 2 * math.exp(-2)), abs=1e-7)
    assert isinstance(LSTM(2, 2).initial_state(1), LSTMState)
