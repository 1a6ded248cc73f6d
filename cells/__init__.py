"""Recurrent cells that train in PyTorch and export to ONNX with batch and time dynamic."""

from .base import SequenceCell, StepCell
from .beam_search import beam_search
from .checks import CellError
from .generation import greedy
from .grid_lstm import GridLSTM, GridState
from .gru import GRU, GRUCell
from .layer_norm_lstm import LayerNormLSTM, LayerNormLSTMCell
from .lstm import LSTM, LSTMCell, LSTMState
from .md_lstm import MDLSTM, MDLSTMState
from .md_rnn import MDRNN
from .recurrence import recurrence
from .rnn import RNN, RNNCell
from .sru import SRU, SRUCell
from .wavefront import wavefront

__all__ = [
    "GRU",
    "LSTM",
    "MDLSTM",
    "MDRNN",
    "RNN",
    "SRU",
    "CellError",
    "GRUCell",
    "GridLSTM",
    "GridState",
    "LSTMCell",
    "LSTMState",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "MDLSTMState",
    "RNNCell",
    "SRUCell",
    "SequenceCell",
    "StepCell",
    "beam_search",
    "greedy",
    "recurrence",
    "wavefront",
]
