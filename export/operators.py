"""ONNX forms of the recurrent operators that ONNX knows: RNN, LSTM, GRU.

Each function translates one of the torch operators of `cellport.cells` to one ONNX node, with the weights laid out as
ONNX wants them (spec of the operators LSTM, GRU and RNN, opset 14). The layout is written as graph operations on
weights; folding constants turns them into initializers.

Lengths may be negative, which means the whole time axis, and rows of length 0 keep their initial state: the runtime's
operators return zeros there, so the graph selects.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.values import Op, Opset

from . import graph_sweeps
from .passes.narrow_scans import CHOOSE, MARKS

op: Any = opset18  # its stubs type tensors by element, which a translation does not know

_INTEGERS = [OpSchema.FormalParameter(name, "tensor(int64)") for name in ("narrow", "whole", "chosen")]
_CHOOSE = Op(Opset(MARKS, 1), CHOOSE, OpSchema(CHOOSE, MARKS, 1, inputs=_INTEGERS[:2], outputs=_INTEGERS[2:]))

LSTM_GATES = (0, 3, 1, 2)
"""ONNX's gate order i, o, f, c in terms of torch's i, f, g, o."""

GRU_GATES = (1, 0, 2)
"""ONNX's gate order z, r, h in terms of torch's r, z, n."""


def _reorder(weight: Any, gates: tuple[int, ...], halves: int = 1) -> Any:
    """Permute the blocks of `gates` along axis 1, in each half of a bias (b_ih; b_hh) alike."""
    blocks = [half * len(gates) + gate for half in range(halves) for gate in gates]
    size = int(weight.shape[1]) // len(blocks)
    axis = op.Constant(value_ints=[1])
    pieces = [
        op.Slice(weight, op.Constant(value_ints=[block * size]), op.Constant(value_ints=[(block + 1) * size]), axis)
        for block in blocks
    ]
    return op.Concat(*pieces, axis=1)


def _whole_axis(input: Any, lengths: Any) -> Any:
    """Replace negative lengths by the size of the time axis."""
    steps = op.Shape(input, start=0, end=1)
    return op.Where(op.Less(lengths, op.Constant(value_ints=[0])), steps, lengths)


def _join_directions(output: Any, directions: int) -> Any:
    """[time, directions, batch, hidden] to [time, batch, directions * hidden]."""
    if directions == 1:
        return op.Squeeze(output, op.Constant(value_ints=[1]))
    return op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))


def _keep_initial(final: Any, initial: Any, lengths: Any) -> Any:
    """Final states [directions, batch, hidden], the initial ones for rows of length 0."""
    ran = op.Unsqueeze(op.Greater(lengths, op.Constant(value_ints=[0])), op.Constant(value_ints=[0, 2]))
    return op.Where(ran, final, initial)


def _run(
    operator: Callable[..., Any],
    input: Any,
    lengths: Any,
    gates: tuple[int, ...],
    weight_ih: Any,
    weight_hh: Any,
    bias: Any,
    states: tuple[Any, ...],
    **attributes: Any,
) -> tuple[Any, ...]:
    directions, hidden = int(weight_hh.shape[0]), int(weight_hh.shape[2])
    if lengths is not None:
        lengths = _whole_axis(input, lengths)
    output, *final = operator(
        input,
        _reorder(weight_ih, gates) if len(gates) > 1 else weight_ih,
        _reorder(weight_hh, gates) if len(gates) > 1 else weight_hh,
        bias if bias is None or len(gates) == 1 else _reorder(bias, gates, halves=2),
        None if lengths is None else op.Cast(lengths, to=6),
        *states,
        hidden_size=hidden,
        **attributes,
    )
    if lengths is not None:
        final = [_keep_initial(last, first, lengths) for last, first in zip(final, states, strict=True)]
    return _join_directions(output, directions), *final


def lstm(
    input: Any, weight_ih: Any, weight_hh: Any, bias: Any, lengths: Any, h: Any, c: Any, direction: str
) -> tuple[Any, ...]:
    """`cellport::lstm` as ONNX LSTM."""
    return _run(op.LSTM, input, lengths, LSTM_GATES, weight_ih, weight_hh, bias, (h, c), direction=direction)


def gru(
    input: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias: Any,
    lengths: Any,
    h: Any,
    direction: str,
    reset_after: bool,
) -> tuple[Any, ...]:
    """`cellport::gru` as ONNX GRU; torch's GRU resets after the recurrent product."""
    attributes = {"direction": direction, "linear_before_reset": int(reset_after)}
    return _run(op.GRU, input, lengths, GRU_GATES, weight_ih, weight_hh, bias, (h,), **attributes)


def rnn(
    input: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias: Any,
    lengths: Any,
    h: Any,
    direction: str,
    nonlinearity: str,
) -> tuple[Any, ...]:
    """`cellport::rnn` as ONNX RNN."""
    activation = {"tanh": "Tanh", "relu": "Relu"}[nonlinearity]
    activations = [activation] * (2 if direction == "bidirectional" else 1)
    return _run(
        op.RNN, input, lengths, (0,), weight_ih, weight_hh, bias, (h,), direction=direction, activations=activations
    )


def window(values: Any, starts: Any, stops: Any, border: Any, in_front: bool, axes: Sequence[int], others: Any) -> Any:
    """`cellport::window` as ONNX Slice."""
    return op.Slice(values, starts, stops, op.Constant(value_ints=list(axes)))


def widen(values: Any, pads: Any, border: Any, axis: int) -> Any:
    """`cellport::widen` as ONNX Pad."""
    return op.Pad(values, pads, None, op.Constant(value_ints=[axis]))


def choose(narrow: Any, whole: Any) -> Any:
    """`cellport::choose` as a mark for `passes.NarrowScans`."""
    return _CHOOSE(narrow, whole)


def surplus(values: Any, others: Any) -> Any:
    """`cellport::surplus` as the difference of two ONNX Shapes."""
    return op.Sub(op.Shape(values, start=0, end=1), op.Shape(others, start=0, end=1))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table that `torch.onnx.export` takes as `custom_translation_table`."""
    operators = torch.ops.cellport
    return {
        operators.lstm.default: lstm,
        operators.gru.default: gru,
        operators.rnn.default: rnn,
        operators.graph_schedule.default: graph_sweeps.graph_schedule,
        operators.graph_sweep.default: graph_sweeps.graph_sweep,
        operators.window.default: window,
        operators.widen.default: widen,
        operators.choose.default: choose,
        operators.surplus.default: surplus,
    }
