"""Changes to a graph, one each, by name.

Each pass is an `onnx_ir` pass with stated pre- and postconditions and can be run alone.
"""

from .calibration import calibrate
from .clean_scans import CleanScans
from .fold_constants import FoldConstants
from .half_weights import HalfWeights
from .hoist_invariants import HoistInvariants
from .infer_reshapes import InferReshapes
from .int8_weights import Int8Weights
from .lookup_tables import FoldedTable, LookupTables
from .lower_recurrent import LowerRecurrent, can_lower
from .move_transposes import MoveTransposes
from .name_tensors import NameTensors, NameWeights
from .narrow_scans import NarrowScans
from .optional_inputs import OptionalInputs
from .prune_tables import PruneTables, read_counts
from .remove_dead import RemoveDead
from .reverse_scans import ReverseScans
from .separate_outputs import SeparateOutputs
from .split_sums import SplitSums
from .table_types import TableTypes

__all__ = [
    "CleanScans",
    "FoldConstants",
    "FoldedTable",
    "HalfWeights",
    "HoistInvariants",
    "InferReshapes",
    "Int8Weights",
    "LookupTables",
    "LowerRecurrent",
    "MoveTransposes",
    "NameTensors",
    "NameWeights",
    "NarrowScans",
    "OptionalInputs",
    "PruneTables",
    "RemoveDead",
    "ReverseScans",
    "SeparateOutputs",
    "SplitSums",
    "TableTypes",
    "calibrate",
    "can_lower",
    "read_counts",
]
