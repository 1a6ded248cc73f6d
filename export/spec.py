"""What a factory for `cellport export module:factory` returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class ExportSpec:
    """A model and how to export it; the fields are the arguments of `to_onnx`.

    Attributes:
        model: the module, without its trained weights if the command line names a weights file.
        args: example arguments.
        input_names: a name for each tensor of `args`.
        output_names: a name for each tensor that the model returns.
        dynamic_shapes: the axes that may change.
        state: output name to input name of the states, ``"auto"``, or None.
    """

    model: nn.Module
    args: tuple[Any, ...]
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_shapes: Any = None
    state: Mapping[str, str] | Literal["auto"] | None = "auto"
