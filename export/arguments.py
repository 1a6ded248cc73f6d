"""What `to_onnx` asks of its arguments and of the module, before anything is traced."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from cellport.errors import CellportError, ExportError
from cellport.manifest import DTYPES

from .flat import results
from .probing import run_unchanged
from .runs import Runner
from .signature import Leaf

__all__ = [
    "check_arguments",
    "check_examples",
    "check_module",
    "check_pairs",
    "check_repeats",
    "check_results",
    "metric_of",
]

_OPSETS = range(18, 23)
_HOOKS: dict[type, str] = {
    prune.BasePruningMethod: "torch.nn.utils.prune; call torch.nn.utils.prune.remove(module, name) before exporting",
    WeightNorm: "torch.nn.utils.weight_norm; call torch.nn.utils.remove_weight_norm(module, name), or use "
    "torch.nn.utils.parametrizations.weight_norm",
    SpectralNorm: "torch.nn.utils.spectral_norm; call torch.nn.utils.remove_spectral_norm(module, name), "
    "or use torch.nn.utils.parametrizations.spectral_norm",
}
"""Hooks that compute a weight anew before each call, and what to do about them."""


def check_arguments(args: object, f: object, opset_version: object, chosen: Mapping[str, Any]) -> None:
    """Refuse arguments that are not what `to_onnx` documents.

    Args:
        args: as of `to_onnx`.
        f: as of `to_onnx`.
        opset_version: as of `to_onnx`.
        chosen: other arguments of `to_onnx` by name.

    Raises:
        ExportError: one is not accepted; the message names it, its value and what is.
    """
    if not isinstance(args, tuple) or not args:
        what = "empty" if args == () else f"a {type(args).__name__}"
        raise ExportError(f"args is {what}; accepted: a tuple of example arguments, at least one")
    if not isinstance(f, str | os.PathLike):
        raise ExportError(f"f is {f!r}; accepted: the path of the file to write")
    if type(opset_version) is not int or opset_version not in _OPSETS:
        raise ExportError(f"opset_version is {opset_version!r}; accepted: an integer from 18 to 22")
    choices: dict[str, tuple[object, ...]] = {
        "state_inputs": ("optional", "required"),
        "lengths": ("auto", None),
        "lookup": ("auto", True, False),
        "lowering": ("auto", "native", "scan"),
        "verify": (True, False),
    }
    for name, accepted in choices.items():
        if not any(chosen[name] is each or (isinstance(each, str) and chosen[name] == each) for each in accepted):
            raise ExportError(f"{name} is {chosen[name]!r}; accepted: {', '.join(map(repr, accepted))}")
    for name in ("input_names", "output_names"):
        if chosen[name] is not None and not isinstance(chosen[name], Sequence):
            raise ExportError(f"{name} is {chosen[name]!r}; accepted: a list of names")
    batches = chosen["batches"]
    if not _sequence(batches) or not batches or not all(type(each) is int and each > 0 for each in batches):
        raise ExportError(f"batches is {batches!r}; accepted: a list of batch sizes of at least 1")
    if not _sequence(chosen["calibration"]):
        raise ExportError(
            f"calibration is {chosen['calibration']!r:.200}; accepted: a list of mappings from input name to array"
        )
    block = chosen["table_block"]
    if block is not None and (type(block) is not int or block < 1):
        raise ExportError(f"table_block is {block!r}; accepted: a number of columns, at least 1, or None")
    if not _sequence(chosen["cases"]) or not all(isinstance(each, Mapping) for each in chosen["cases"]):
        raise ExportError(f"cases is {chosen['cases']!r:.200}; accepted: a list of mappings from input name to array")
    if chosen["draw"] is not None and not callable(chosen["draw"]):
        raise ExportError(f"draw is {chosen['draw']!r}; accepted: a function that draws inputs, or None")
    state = chosen["state"]
    if not (state is None or isinstance(state, Mapping) or (isinstance(state, str) and state == "auto")):
        raise ExportError(f"state is {state!r}; accepted: 'auto', None, or a mapping from output name to input name")
    if chosen["evaluate"] is not None and not callable(chosen["evaluate"]):
        raise ExportError(f"evaluate is {chosen['evaluate']!r}; accepted: a function of a model, or None")


def _sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_module(model: object) -> None:
    """Refuse a module that cannot be exported as it is.

    Raises:
        ExportError: what stands in the way, by the name of the module or tensor, and what to do.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")
    for path, module in model.named_modules():
        name = repr(path) if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ExportError(f"{name} is a torch.jit.ScriptModule; pass the nn.Module that it was made from")
        if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
            raise ExportError(f"{name} was made by torch.compile; pass the module itself, which is its _orig_mod")
        for hook in module._forward_pre_hooks.values():
            for kind, said in _HOOKS.items():
                if isinstance(hook, kind):
                    raise ExportError(f"{name} computes a weight anew before each call, by {said}")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ExportError(f"{training[0]} is in training mode; call model.eval() before exporting")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ExportError(f"{name!r} has no shape yet; run the model once before exporting")
        if tensor.device.type != "cpu":
            raise ExportError(f"{name!r} is on the device {tensor.device}; call model.cpu() before exporting")
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ExportError(
                f"{name!r} has dtype {tensor.dtype}; call model.float() before exporting, and choose the element type "
                "of the file with weights="
            )
        if tensor.is_inference():
            raise ExportError(
                f"{name!r} was made in inference mode, where torch keeps no account of changes; make or load the model "
                "outside of torch.inference_mode()"
            )


def check_repeats(model: nn.Module, leaves: Sequence[Leaf], structure: Any) -> None:
    """Refuse a module whose results differ from one run to the next on the same arguments.

    Raises:
        ExportError: forward is random; the message names the first result that differs.
    """
    with torch.no_grad():
        first, second = (
            results(run_unchanged(model, [leaf.example.clone() for leaf in leaves], structure)) for _ in range(2)
        )
    for index, (one, two) in enumerate(zip(first, second, strict=False)):
        if one.shape != two.shape or not torch.equal(_number(one), _number(two)):
            raise ExportError(
                f"result {index} of the model differs between two runs on the same arguments; take what is random, "
                "such as noise or a dropout of its own, out of forward, or pass it as an argument"
            )


def _number(value: Tensor) -> Tensor:
    return torch.nan_to_num(value) if value.is_floating_point() else value


def check_results(names: Sequence[str], result: Any) -> None:
    """Refuse results of an element type that a file cannot hold.

    Raises:
        ExportError: the first such result.
    """
    accepted = DTYPES - {"string", "bfloat16"}
    for name, value in zip(names, results(result), strict=True):
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in accepted:
            way = "; return torch.view_as_real of it" if value.is_complex() else ""
            raise ExportError(f"result {name!r} has dtype {value.dtype}; accepted: {', '.join(sorted(accepted))}{way}")


def check_pairs(pairs: Mapping[str, str], leaves: Iterable[Leaf], names: Sequence[str], result: Any) -> None:
    """Refuse a state whose input and output have different element types, since one is fed back as the other.

    Args:
        pairs: output by input.
        leaves: the arguments.
        names: of the results.
        result: what forward returned.

    Raises:
        ExportError: the first such pair.
    """
    inputs = {leaf.name: leaf.example for leaf in leaves}
    outputs = dict(zip(names, results(result), strict=True))
    for input, output in pairs.items():
        one, other = inputs.get(input), outputs.get(output)
        if one is None or other is None or one.dim() != other.dim():
            continue  # refused for its name or axes where the states are named
        if one.dtype != other.dtype:
            raise ExportError(
                f"state input {input!r} has dtype {one.dtype} and its output {output!r} {other.dtype}; "
                "both must be the same"
            )


def metric_of(evaluate: Callable[[Runner], float], run: Runner) -> float:
    """The task's metric of a model.

    Raises:
        ExportError: the user's function fails, or does not return a number.
    """
    try:
        value = evaluate(run)
        return float(value)
    except CellportError:
        raise
    except Exception as error:  # whatever the user's function raises
        raise ExportError(f"evaluate fails: {type(error).__name__}: {error}") from error


def check_examples(leaves: Sequence[Leaf]) -> None:
    """Refuse examples that hold nothing.

    Raises:
        ExportError: the first one with an axis of size 0.
    """
    for leaf in leaves:
        if 0 in leaf.example.shape:
            raise ExportError(
                f"the example of {leaf.name!r} has shape {list(leaf.example.shape)}; "
                "accepted: at least 1 along each axis"
            )
