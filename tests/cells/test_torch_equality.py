"""RNN, LSTM and GRU are torch.nn's: names, shapes, results, gradients."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cellport.cells import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

from .cases import tensors_of

# torch.nn.LSTM itself warns.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

PAIRS = {
    "rnn-tanh": (RNN, nn.RNN, {}),
    "rnn-relu": (RNN, nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (LSTM, nn.LSTM, {}),
    "lstm-projected": (LSTM, nn.LSTM, {"proj_size": 2}),
    "gru": (GRU, nn.GRU, {}),
}
OPTIONS = [
    {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    for layers, bidirectional, bias, batch_first in itertools.product(
        (1, 2), (False, True), (False, True), (False, True)
    )
]
T, B = 6, 4


def pair(name, **more):
    """A cell that has loaded the state_dict of the torch.nn module beside it."""
    ours, theirs, options = PAIRS[name]
    wanted = theirs(3, 4, **options, **more)
    cell = ours(3, 4, **options, **more)
    cell.load_state_dict(wanted.state_dict())
    return cell, wanted


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(value) for value in options.values()))
def test_outputs_states_and_gradients_are_torch_nns(name, options):
    cell, wanted = pair(name, **options)
    x, y = (torch.randn(B, T, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    if not options["batch_first"]:
        x, y = (t.detach().transpose(0, 1).requires_grad_() for t in (x, y))
    results, expected = cell(x), wanted(y)
    torch.testing.assert_close(results[0], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(tensors_of(results[1]), tensors_of(expected[1]), rtol=0, atol=0)
    results[0].sum().backward()
    expected[0].sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)
    for key, parameter in wanted.named_parameters():
        torch.testing.assert_close(cell.get_parameter(key).grad, parameter.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_have_torch_nns_names_in_its_order(name):
    cell, wanted = pair(name, num_layers=2, bidirectional=True)
    assert list(cell.state_dict()) == list(wanted.state_dict())


@pytest.mark.parametrize("name", PAIRS)
def test_parameters_are_drawn_as_torch_nn_draws_them(name):
    ours, theirs, options = PAIRS[name]
    torch.manual_seed(3)
    wanted = theirs(3, 4, num_layers=2, **options).state_dict()
    torch.manual_seed(3)
    torch.testing.assert_close(ours(3, 4, num_layers=2, **options).state_dict(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_lengths_give_what_a_packed_sequence_gives(name):
    cell, wanted = pair(name, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(T, B, 3), torch.tensor([2, 6, 1, 4])
    output, final = cell(x, None, lengths)
    packed, packed_final = wanted(pack_padded_sequence(x, lengths, enforce_sorted=False))
    torch.testing.assert_close(output, pad_packed_sequence(packed, total_length=T)[0], rtol=0, atol=0)
    torch.testing.assert_close(tensors_of(final), tensors_of(packed_final), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru"])
def test_dropout_between_layers_is_torch_nns(name):
    cell, wanted = pair(name, num_layers=3, dropout=0.5)
    x = torch.randn(T, B, 3)
    torch.manual_seed(0)
    output = cell(x)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(output, wanted(x)[0], rtol=0, atol=0)
    torch.testing.assert_close(cell.eval()(x)[0], wanted.eval()(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (RNNCell, nn.RNNCell, {}),
        (RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
        (LSTMCell, nn.LSTMCell, {}),
        (GRUCell, nn.GRUCell, {}),
    ],
    ids=["rnn-tanh", "rnn-relu", "lstm", "gru"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_single_step_is_torch_nns(ours, theirs, options, bias):
    cell, wanted = ours(3, 4, bias, **options), theirs(3, 4, bias, **options)
    assert list(cell.state_dict()) == list(wanted.state_dict())
    cell.load_state_dict(wanted.state_dict())
    x, state = torch.randn(B, 3), tuple(torch.randn(B, 4) for _ in cell.state_names)
    output, new = cell(x, cell.pack_state(state))
    expected = wanted(x, state if len(state) > 1 else state[0])
    torch.testing.assert_close(tensors_of(new), tensors_of(expected))
    torch.testing.assert_close(output, tensors_of(expected)[0])
    torch.testing.assert_close(tensors_of(cell(x)[1]), tensors_of(wanted(x)))


@pytest.mark.parametrize("name", ["rnn-tanh", "lstm", "gru"])
def test_a_parametrised_weight_is_used_and_trained(name):
    cell, _ = pair(name)
    parametrizations.weight_norm(cell, "weight_hh_l0")
    cell.parametrizations.weight_hh_l0.original0.data.zero_()
    x = torch.randn(T, B, 3)
    output, _ = cell(x)
    plain, _ = pair(name)
    plain.load_state_dict({key: getattr(cell, key).detach() for key in plain.state_dict()})
    torch.testing.assert_close(output, plain(x)[0])
    output.sum().backward()
    assert cell.parametrizations.weight_hh_l0.original0.grad.any()
