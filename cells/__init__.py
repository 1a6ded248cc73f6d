"""Recurrent cells that train in PyTorch and export to ONNX with batch and time dynamic."""

from .base import SequenceCell, StepCell
from .beam_search import beam_search
from .checks import CellError
from .dag_lstm import DAG, DAGLSTM, dags_of
from .generation import greedy
from .graph_lstm import GraphLSTM
from .graphs import GraphUnion, levels_of, neighbours_of, unite_graphs, visiting_order
from .grid_lstm import GridLSTM, GridState
from .gru import GRU, GRUCell
from .layer_norm_lstm import LayerNormLSTM, LayerNormLSTMCell
from .levels import level_recurrence
from .lstm import LSTM, LSTMCell, LSTMState
from .md_lstm import MDLSTM, MDLSTMState
from .md_rnn import MDRNN
from .md_stack import MDStack
from .recurrence import recurrence
from .rnn import RNN, RNNCell
from .sru import SRU, SRUCell
from .tree_lstm import TreeLSTM
from .wavefront import wavefront

__all__ = [
    "DAG",
    "DAGLSTM",
    "GRU",
    "LSTM",
    "MDLSTM",
    "MDRNN",
    "RNN",
    "SRU",
    "CellError",
    "GRUCell",
    "GraphLSTM",
    "GraphUnion",
    "GridLSTM",
    "GridState",
    "LSTMCell",
    "LSTMState",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "MDLSTMState",
    "MDStack",
    "RNNCell",
    "SRUCell",
    "SequenceCell",
    "StepCell",
    "TreeLSTM",
    "beam_search",
    "dags_of",
    "greedy",
    "level_recurrence",
    "levels_of",
    "neighbours_of",
    "recurrence",
    "unite_graphs",
    "visiting_order",
    "wavefront",
]
