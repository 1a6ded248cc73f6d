"""torch.nn's recurrent layers as cellport's cells: the same parameters, in a form that exports."""

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cellport.cells import GRU, LSTM, RNN, SequenceCell
from cellport.errors import ExportError

from .packing import Padded

__all__ = ["as_cell", "enter", "leave"]


def as_cell(module: nn.RNNBase) -> SequenceCell:
    """The cell that computes what a torch.nn.RNN, LSTM or GRU computes.

    It has the layer's own parameters, whatever takes their place later, and is not `batch_first`.

    Raises:
        ExportError: the layer is of another kind.
    """
    options: dict[str, Any] = {
        "num_layers": module.num_layers,
        "bias": module.bias,
        "dropout": module.dropout,
        "bidirectional": module.bidirectional,
        "device": "meta",
    }
    sizes = (module.input_size, module.hidden_size)
    cell: SequenceCell
    if module.mode == "LSTM":
        cell = LSTM(*sizes, **options, proj_size=module.proj_size)
    elif module.mode == "GRU":
        cell = GRU(*sizes, **options)
    elif module.mode in ("RNN_TANH", "RNN_RELU"):
        cell = RNN(*sizes, **options, nonlinearity=module.mode.removeprefix("RNN_").lower())
    else:
        raise ExportError(f"a recurrent layer of torch.nn has the mode {module.mode!r}; accepted: RNN, LSTM, GRU")
    cell._parameters = module._parameters
    cell.__dict__["weight"] = lambda name: getattr(module, name)
    return cell.train(module.training)


def enter(module: nn.RNNBase, input: Any, hx: Any) -> tuple[Tensor, Any, Tensor | None]:
    """Arguments of a torch.nn layer as those of its cell: input [time, batch, features], state, lengths.

    Raises:
        ExportError: the input is no tensor of two or three axes and no packed sequence.
    """
    if isinstance(input, Padded):
        return input.values, hx, input.lengths
    if not isinstance(input, Tensor) or input.dim() not in (2, 3):
        what = f"shape {list(input.shape)}" if isinstance(input, Tensor) else f"type {type(input).__name__}"
        raise ExportError(
            f"input has {what}; accepted: a tensor of three axes, of two for one sequence, or a sequence that "
            "pack_padded_sequence made in forward"
        )
    if input.dim() == 2:
        return input.unsqueeze(1), pytree.tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(1), hx), None
    return (input.transpose(0, 1) if module.batch_first else input), hx, None


def leave(module: nn.RNNBase, input: Any, output: Tensor, final: Any) -> tuple[Any, Any]:
    """Results of a cell in the form that the torch.nn layer gives them for `input`."""
    final = tuple(final) if module.mode == "LSTM" else final
    if isinstance(input, Padded):
        return Padded(output, input.lengths), final
    if input.dim() == 2:
        return output.squeeze(1), pytree.tree_map_only(Tensor, lambda tensor: tensor.squeeze(1), final)
    return (output.transpose(0, 1) if module.batch_first else output), final
