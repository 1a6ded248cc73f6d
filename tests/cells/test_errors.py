"""What a cell does not accept is refused with the thing's name, its value and what would be accepted."""

import pytest
import torch

from cellport.cells import GRU, LSTM, RNN, SRU, CellError, GRUCell, LSTMCell, RNNCell, SRUCell
from cellport.errors import CellportError

x = torch.zeros(5, 2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RNN(0, 4), "RNN: input_size is 0; accepted is an integer of at least 1"),
        (lambda: GRU(3, -1), "GRU: hidden_size is -1"),
        (lambda: LSTM(3, 4, 0), "LSTM: num_layers is 0"),
        (lambda: SRU(3, 2.5), "SRU: hidden_size is 2.5"),
        (lambda: LSTM(3, 4, proj_size=4), "LSTM: proj_size is 4; accepted is 0 to hidden_size - 1 = 3"),
        (lambda: LSTM(3, 4, dropout=1.5), "LSTM: dropout is 1.5; accepted is a probability, 0 to 1"),
        (lambda: RNN(3, 4, nonlinearity="selu"), "RNN: nonlinearity is 'selu'; accepted is 'tanh' or 'relu'"),
        (lambda: RNNCell(3, 4, nonlinearity="selu"), "RNNCell: nonlinearity is 'selu'"),
        (lambda: SRU(3, 4, version=3), "SRU: version is 3; accepted is 1 or 2"),
        (lambda: SRU(3, 4, activation="selu"), "SRU: activation is 'selu'; accepted is 'identity', 'tanh' or 'relu'"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(CellError) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize("cell", [RNN(3, 4), LSTM(3, 4), GRU(3, 4), SRU(3, 4)], ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((x[:, 0],), "input has shape [5, 3]; accepted is [time, batch, features] with 3 features (add a batch axis"),
        ((torch.zeros(5, 2, 7),), "input has shape [5, 2, 7]; accepted is [time, batch, features] with 3 features"),
        ((x, None, torch.zeros(3, dtype=torch.int64)), "lengths have shape [3]; accepted is [batch] = [2]"),
        ((x, None, torch.zeros(2, 1, dtype=torch.int64)), "lengths have shape [2, 1]; accepted is [batch]"),
        ((x, None, torch.zeros(2)), "lengths have dtype torch.float32; accepted is an integer dtype"),
        ((x, None, torch.tensor([6, 1])), "lengths have the value 6; accepted is 0 to 5, the size of the time axis"),
    ],
)
def test_bad_inputs_and_lengths_are_refused(cell, arguments, message):
    with pytest.raises(CellError) as error:
        cell(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("cell", "state", "message"),
    [
        (RNN(3, 4), torch.zeros(1, 3, 4), "RNN: state 'h' has shape [1, 3, 4]; accepted is [1, 2, 4]"),
        (GRU(3, 4, 2), torch.zeros(1, 2, 4), "GRU: state 'h' has shape [1, 2, 4]; accepted is [2, 2, 4]"),
        (
            SRU(3, 4, bidirectional=True),
            torch.zeros(2, 2, 4),
            "SRU: state 'c' has shape [2, 2, 4]; accepted is [1, 2, 8]",
        ),
        (LSTM(3, 4), (torch.zeros(1, 2, 4),), "LSTM: state is 1 tensors; accepted is a tuple (h, c)"),
        (LSTM(3, 4), torch.zeros(1, 2, 4), "LSTM: state is a Tensor; accepted is a tuple (h, c)"),
        (LSTM(3, 4), (torch.zeros(1, 2, 4), None), "LSTM: state 'c' is a NoneType; accepted is a tensor [1, 2, 4]"),
        (
            LSTM(3, 4, proj_size=2),
            (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)),
            "LSTM: state 'h' has shape [1, 2, 4]; accepted is [1, 2, 2]",
        ),
    ],
)
def test_bad_states_are_refused(cell, state, message):
    with pytest.raises(CellError) as error:
        cell(x, state)
    assert message in str(error.value)


@pytest.mark.parametrize("build", [RNNCell, LSTMCell, GRUCell, SRUCell])
def test_a_single_step_cell_refuses_a_sequence_and_a_foreign_state(build):
    cell = build(3, 4)
    with pytest.raises(CellError, match=r"accepted is \[batch, features\] with 3 features"):
        cell(x)
    with pytest.raises(CellError, match="state"):
        cell(x[0], torch.zeros(2, 5))


def test_every_refusal_is_caught_as_cellports_and_as_a_value_error():
    assert issubclass(CellError, CellportError)
    assert issubclass(CellError, ValueError)


def test_a_plain_tuple_is_an_lstm_state_and_what_comes_back_is_named():
    cell = LSTM(3, 4)
    _, state = cell(x, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)))
    assert state.c.shape == state.h.shape == (1, 2, 4)
    assert torch.equal(cell.initial_state(2).h, torch.zeros(1, 2, 4))


@pytest.mark.parametrize("call", [LSTM(3, 2), GRUCell(3, 2)])
def test_an_input_of_another_type_is_refused_by_name(call: torch.nn.Module) -> None:
    shape = (4, 1, 3) if isinstance(call, LSTM) else (4, 3)
    with pytest.raises(CellError, match=r"input has dtype torch\.float64; accepted is the parameters' torch\.float32"):
        call(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(CellError, match="input is a list; accepted is a tensor"):
        call([1.0])
