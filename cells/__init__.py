"""Recurrent cells that train in PyTorch and export to ONNX with batch and time dynamic."""

from .base import SequenceCell, StepCell
from .beam_search import beam_search
from .checks import CellError
from .generation import greedy
from .gru import GRU, GRUCell
from .layer_norm_lstm import LayerNormLSTM, LayerNormLSTMCell
from .lstm import LSTM, LSTMCell, LSTMState
from .recurrence import recurrence
from .rnn import RNN, RNNCell
from .sru import SRU, SRUCell
from .wavefront import wavefront

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "CellError",
    "GRUCell",
    "LSTMCell",
    "LSTMState",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "RNNCell",
    "SRUCell",
    "SequenceCell",
    "StepCell",
    "beam_search",
    "greedy",
    "recurrence",
    "wavefront",
]
