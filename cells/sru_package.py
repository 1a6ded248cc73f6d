"""Reading a network of the package `sru` (2.6.0), from a module or from a bare state_dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from .checks import CellError

__all__ = ["PackageSRU", "read_package"]

# The package's activation_type; 2 is of its releases up to 2.1.7.
ACTIVATION_TYPES = {0: "identity", 1: "tanh", 2: "relu"}

INPUT_KEY = "input_to_hidden.weight"
LAYER_KEY = re.compile(
    r"rnn_lst\.(\d+)\.(weight|weight_proj|weight_c|bias|scale_x|layer_norm\.weight|layer_norm\.bias)"
)
REQUIRED = ("weight", "weight_c", "bias", "scale_x")
METHODS = ("forward", "compute_UV", "compute_U", "apply_recurrence")


@dataclass(frozen=True)
class PackageSRU:
    """A network of the package as `cellport.cells.SRU` takes it.

    Attributes:
        arguments: of SRU's constructor.
        state_dict: copies of the tensors, under SRU's names.
        layers: the package's layers, or none where a state_dict was read.
    """

    arguments: dict[str, Any]
    state_dict: dict[str, Tensor]
    layers: tuple[nn.Module, ...]


def read_package(source: nn.Module | Mapping[str, Tensor], prefix: str, options: Mapping[str, Any]) -> PackageSRU:
    """Read a module or a state_dict.

    Args:
        source: `sru.SRU`, `sru.SRUCell`, or the state_dict of one.
        prefix: what the keys of a state_dict begin with.
        options: arguments of SRU's constructor from the caller; None for what the source or the default tells.

    Raises:
        CellError: as of `SRU.from_sru`.
    """
    layers: tuple[nn.Module, ...] = ()
    if isinstance(source, nn.Module):
        if prefix:
            _refuse(f"prefix is {prefix!r}; accepted is a prefix with a state_dict only")
        layers = _layers_of(source)
        tensors = _read_keys(source.state_dict(), "")
    elif isinstance(source, Mapping):
        tensors = _read_keys(source, prefix)
    else:
        _refuse_source(source)
    arguments = _read_shapes(tensors)
    for index, layer in enumerate(layers):
        _merge(arguments, _options_of(layer), f"layer {index} has")
    if layers:
        _merge(arguments, {"dropout": float(cast(Any, source).dropout)}, "the module has")
    _merge(arguments, {name: value for name, value in options.items() if value is not None}, "the caller gives")
    arguments.setdefault("rescale", any(bool((tensors[key] != 1).any()) for key in tensors if key.endswith("scale_x")))
    _complete(arguments)
    return PackageSRU(arguments, {name: tensor.detach().clone() for name, tensor in tensors.items()}, layers)


def _layers_of(module: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of a module of the package; anything that computes something else is refused by its name."""
    stacked = module._modules.get("rnn_lst")
    layers = tuple(stacked) if isinstance(stacked, nn.ModuleList) else (module,)
    kinds = [(module, "SRU"), *((layer, "SRUCell") for layer in layers)] if stacked else [(module, "SRUCell")]
    for part, kind in kinds:
        base = next((each for each in type(part).__mro__ if each.__name__ == kind), None)
        if base is None or (kind == "SRUCell" and not hasattr(part, "has_skip_term")):
            _refuse_source(part)
        for method in METHODS:
            if getattr(type(part), method, None) is not getattr(base, method, None):
                _refuse(f"{type(part).__name__} has a {method} of its own; accepted is the package's {kind}")
    for index, layer in enumerate(layers):
        custom = getattr(layer, "custom_m", None)
        if custom is not None:
            _refuse(
                f"layer {index} projects with custom_m, a {type(custom).__name__}; accepted is the package's own "
                "projection (SRU++ and other custom modules are other networks)"
            )
        if layer.activation_type not in ACTIVATION_TYPES:
            _refuse(
                f"layer {index} has activation_type {layer.activation_type}; accepted is 0 (identity), 1 (tanh) or "
                "2 (relu)"
            )
    return layers


def _options_of(layer: Any) -> dict[str, Any]:
    """What a layer of the package says of itself, in the words of SRU's constructor."""
    norm = getattr(layer, "layer_norm", None)
    return {
        "bidirectional": bool(layer.bidirectional),
        "activation": ACTIVATION_TYPES[layer.activation_type],
        "version": 1 if getattr(layer, "v1", False) else 2,
        "skip": bool(layer.has_skip_term),
        "rescale": bool(layer.rescale),
        "highway_bias": float(layer.highway_bias),
        "input_dropout": float(layer.rnn_dropout),
        "layer_norm": None if norm is None else "post" if getattr(layer, "normalize_after", False) else "pre",
    }


def _read_keys(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a network under SRU's names; a key that no such network has is refused."""
    prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    tensors = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if "weight_c" in tensors:
        tensors = {f"rnn_lst.0.{key}": value for key, value in tensors.items()}
    if not any(key.startswith("rnn_lst.") for key in tensors):
        found = sorted({key[: key.index("rnn_lst.")] for key in state_dict if "rnn_lst." in key})
        hint = f" (there are some under prefix={found[0]!r})" if found else ""
        _refuse(f"the state_dict has no keys '{prefix}rnn_lst.<layer>.<name>'{hint}")
    for key, value in tensors.items():
        if "custom_m" in key or "transform_module" in key:
            _refuse(f"the state_dict has {key!r}, of a custom projection; accepted is the package's own (not SRU++)")
        if key != INPUT_KEY and not LAYER_KEY.fullmatch(key):
            _refuse(
                f"the state_dict has {key!r}; accepted are {INPUT_KEY} and rnn_lst.<layer>. with weight, weight_proj, "
                "weight_c, bias, scale_x, layer_norm.weight and layer_norm.bias"
            )
        if not isinstance(value, Tensor):
            _refuse(f"{key!r} is a {type(value).__name__}; accepted is a tensor")
    return tensors


def _read_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that names and shapes tell, with the number of outputs in the place of the hidden size."""
    layers = _by_layer(tensors)
    first = layers[0]
    outputs = first["weight_c"].numel() // 2
    projections = first["weight"].shape[-1] // max(outputs, 1)
    rows = [layer.get("weight_proj", layer["weight"]).shape[0] for layer in layers]
    factors = {layer["weight_proj"].shape[-1] for layer in layers if "weight_proj" in layer}
    arguments: dict[str, Any] = {
        "input_size": tensors[INPUT_KEY].shape[-1] if INPUT_KEY in tensors else rows[0],
        "outputs": outputs,
        "num_layers": len(layers),
        "n_proj": max(factors, default=0),
        "input_projection": INPUT_KEY in tensors,
    }
    norm = first.get("layer_norm.weight")
    if norm is None:
        arguments["layer_norm"] = None
    elif rows[0] != outputs:
        arguments["layer_norm"] = "post" if norm.numel() == outputs else "pre"
    if projections == 4 or rows[0] != outputs:
        arguments["skip"] = projections == 4
    if any(bool(layer["weight_c"].any()) for layer in layers):
        arguments["version"] = 2
    wanted = _shapes_of(arguments, projections, rows[0])
    for key, tensor in tensors.items():
        if list(tensor.shape) != wanted.get(key):
            _refuse(
                f"{key!r} has shape {list(tensor.shape)}; accepted is {wanted.get(key, 'no such tensor')} beside "
                f"'rnn_lst.0.weight' {list(first['weight'].shape)} and 'rnn_lst.0.weight_c' {[2 * outputs]}"
            )
    if missing := [key for key in wanted if key not in tensors]:
        _refuse(f"the state_dict lacks {missing[0]!r}")
    return arguments


def _by_layer(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := LAYER_KEY.fullmatch(key):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    for index in range(len(layers)):
        for name in REQUIRED:
            if name not in layers.get(index, {}):
                _refuse(f"the state_dict lacks 'rnn_lst.{index}.{name}'")
    return [layers[index] for index in range(len(layers))]


def _shapes_of(arguments: Mapping[str, Any], projections: int, first: int) -> dict[str, list[int]]:
    """The shape of each tensor of a network whose first layer has `first` inputs and `projections` blocks."""
    outputs, inner = arguments["outputs"], arguments["n_proj"]
    shapes = {INPUT_KEY: [outputs, arguments["input_size"]]} if arguments["input_projection"] else {}
    for layer in range(arguments["num_layers"]):
        inputs, blocks = (first, projections) if layer == 0 else (outputs, 3)
        of_layer = {"weight": [inputs, outputs * blocks], "weight_c": [2 * outputs], "bias": [2 * outputs]}
        if 0 < inner < min(inputs, outputs):
            of_layer |= {"weight_proj": [inputs, inner], "weight": [inner, outputs * blocks]}
        if arguments.get("layer_norm", "pre") is not None:
            normed = [outputs if arguments.get("layer_norm") == "post" else inputs]
            of_layer |= {"layer_norm.weight": normed, "layer_norm.bias": normed}
        shapes |= {f"rnn_lst.{layer}.{name}": shape for name, shape in {**of_layer, "scale_x": [1]}.items()}
    return shapes


def _merge(arguments: dict[str, Any], more: Mapping[str, Any], who: str) -> None:
    """Add what another source tells to what is known; they may not contradict each other."""
    for name, value in more.items():
        if name in arguments and arguments[name] != value:
            _refuse(f"{who} {name}={value!r}; accepted is {arguments[name]!r}, which the source tells")
        arguments[name] = value


def _complete(arguments: dict[str, Any]) -> None:
    """Fill in the package's defaults for what nothing told, and the hidden size."""
    defaults = {"bidirectional": False, "layer_norm": "pre", "skip": True, "version": 1}
    for name, value in defaults.items():
        arguments.setdefault(name, value)
    outputs = arguments.pop("outputs")
    if arguments["bidirectional"] and outputs % 2:
        _refuse(f"bidirectional is True; accepted is False for layers of {outputs} outputs, an odd number")
    arguments["hidden_size"] = outputs // 2 if arguments["bidirectional"] else outputs


def _refuse_source(source: object) -> NoReturn:
    _refuse(f"source is a {type(source).__name__}; accepted is an SRU or SRUCell of the package, or its state_dict")


def _refuse(what: str) -> NoReturn:
    raise CellError(f"SRU.from_sru: {what}")
