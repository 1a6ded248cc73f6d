"""Recurrent layers of a user's module, seen and changed while its forward runs.

Every call of a recurrent layer in the module passes through one function, which may look at it, give it another state
or lengths, and keep what it returns. The layers are cellport's cells and torch.nn's RNN, LSTM and GRU; the module
itself stays as it is.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cellport.cells import CellError, SequenceCell
from cellport.errors import ExportError

from .packing import REPLACED, padding
from .torch_layers import as_cell, enter, leave

__all__ = ["Handler", "Layer", "layers_of", "run_cell", "watching"]


@dataclass(frozen=True)
class Layer:
    """One recurrent layer.

    Attributes:
        path: name of the module in the user's; None for one that is not part of it.
        cell: what computes it.
        batch_axis: the batch axis of the input that `Handler` is given.
    """

    path: str | None
    cell: SequenceCell
    batch_axis: int


Handler = Callable[[Layer, Tensor, Any, Tensor | None], tuple[Tensor, Any]]
"""Maps a layer, its input, state and lengths to its output and final state."""


def layers_of(model: nn.Module) -> dict[int, Layer]:
    """The recurrent layers of a module by the identity of their modules, in the module's order."""
    found: dict[int, Layer] = {}
    for path, module in model.named_modules():
        if isinstance(module, SequenceCell):
            found[id(module)] = Layer(path, module, 0 if module.batch_first else 1)
        elif isinstance(module, nn.RNNBase):
            found[id(module)] = Layer(path, as_cell(module), 1)
    return found


def run_cell(layer: Layer, input: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """Run a layer's cell.

    Raises:
        CellError: the cell does not accept what it is given; the message begins with the layer's path.
    """
    token = padding.set(False)  # the cells pack by themselves
    try:
        return _FORWARD(layer.cell, input, state, lengths)
    except CellError as error:
        if layer.path and not str(error).startswith(f"{layer.path}: "):
            raise CellError(f"{layer.path}: {error}") from error
        raise
    finally:
        padding.reset(token)


@contextlib.contextmanager
def watching(layers: Mapping[int, Layer], handler: Handler) -> Iterator[None]:
    """Pass every call of the layers in this block, in this thread, through `handler`."""
    with _replaced():
        tokens = _watch.set((layers, handler)), padding.set(True)
        try:
            yield
        finally:
            _watch.reset(tokens[0])
            padding.reset(tokens[1])


_watch: ContextVar[tuple[Mapping[int, Layer], Handler] | None] = ContextVar("_watch", default=None)
_FORWARD: Callable[..., tuple[Tensor, Any]] = SequenceCell.forward
_TORCH: dict[type[nn.RNNBase], Callable[..., Any]] = {kind: kind.forward for kind in (nn.RNN, nn.LSTM, nn.GRU)}
_CODE = {function: function.__code__ for function in REPLACED}
_lock = threading.Lock()
_depth = 0


def _cell_forward(self: SequenceCell, input: Tensor, state: Any = None, lengths: Tensor | None = None) -> Any:
    watch = _watch.get()
    if watch is None:
        return _FORWARD(self, input, state, lengths)
    layers, handler = watch
    return handler(layers.get(id(self)) or Layer(None, self, 0 if self.batch_first else 1), input, state, lengths)


def _torch_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        watch = _watch.get()
        if watch is None:
            return original(self, input, hx)
        layers, handler = watch
        layer = layers.get(id(self)) or Layer(None, as_cell(self), 1)
        try:
            values, state, lengths = enter(self, input, hx)
        except ExportError as error:
            raise ExportError(f"{layer.path or type(self).__name__}: {error}") from None
        output, final = handler(layer, values, state, lengths)
        return leave(self, input, output, final)

    return forward


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    """Put the functions of this module in the place of torch's and the cells', and take them away again.

    Threads that watch nothing find everything as it was.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            SequenceCell.forward = _cell_forward  # type: ignore[method-assign]
            for kind, original in _TORCH.items():
                kind.forward = _torch_forward(original)
            for function, code in REPLACED.items():
                function.__code__ = code
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                SequenceCell.forward = _FORWARD  # type: ignore[method-assign]
                for kind, original in _TORCH.items():
                    kind.forward = original
                for function, code in _CODE.items():
                    function.__code__ = code
