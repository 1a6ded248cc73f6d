"""Which exporter gets which recurrent model right: torch.onnx.export, both of its ways, and cellport.

Each model is exported with sequences of 7 steps and a batch of 2, both axes declared dynamic, and run in onnxruntime
with sequences of 1, 5 and 40 steps in batches of 1 and 3. What comes out is compared with PyTorch:

    right      every output has PyTorch's shape and values, within 1e-5 of a float64 run (relative to its largest value)
    wrong      some output differs
    frozen     the file runs with 7 steps and a batch of 2, but not with other sizes, or always gives the same size
    refused    the exporter raises, or onnxruntime does not load or run what it wrote

    python benchmarks/exporters.py [--only NAME ...] [--exporters cellport ...] [--json exporters.json]
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch
from sru_models import sru_models
from torch import Tensor, nn
from zoo import (
    FEATURES,
    HIDDEN,
    VOCABULARY,
    Bridged,
    ConvolutionalRecurrent,
    EncoderDecoder,
    Hierarchical,
    Independent,
    LanguageModel,
    Layer,
    LayerFrom,
    LayerFromTwo,
    Learned,
    Looped,
    MinGRU,
    Moments,
    Normalised,
    OwnZeros,
    Packed,
    Residual,
    Shifted,
    Siamese,
    Step,
    StepOfTwo,
    Tokens,
    WithLengths,
    Written,
    attend,
    classify,
    classify_both,
    last_step,
    maximum,
    tag,
)

from cellport import cells
from cellport.export import to_onnx

EXAMPLE = (2, 7)
CHECKS = [(batch, steps) for steps in (1, 5, 40) for batch in (1, 3)]
TOLERANCE = 1e-5

Arguments = Callable[[int, int], tuple[Any, ...]]


@dataclass(frozen=True)
class Model:
    """A module, arguments for it of a batch size and a number of steps, and the names of their dynamic axes."""

    name: str
    make: Callable[[], nn.Module]
    arguments: Arguments
    axes: tuple[dict[int, str], ...]


BATCH_FIRST, TIME_FIRST = {0: "batch", 1: "time"}, {0: "time", 1: "batch"}
STATE, ROWS = {1: "batch"}, {0: "batch"}


def features(batch: int, steps: int) -> tuple[Any, ...]:
    return (torch.randn(batch, steps, FEATURES),)


def turned(batch: int, steps: int) -> tuple[Any, ...]:
    return (torch.randn(steps, batch, FEATURES),)


def tokens(batch: int, steps: int) -> tuple[Any, ...]:
    return (torch.randint(VOCABULARY, (batch, steps)),)


def with_lengths(make: Arguments, *, sorts: bool = False) -> Arguments:
    """Add lengths, of which one is the whole time axis."""

    def arguments(batch: int, steps: int) -> tuple[Any, ...]:
        lengths = torch.randint(1, steps + 1, (batch,))
        lengths[0] = steps
        return *make(batch, steps), lengths.sort(descending=True).values if sorts else lengths

    return arguments


def with_states(make: Arguments, *sizes: tuple[int, int]) -> Arguments:
    """Add states [layers, batch, features]."""
    return lambda batch, steps: (*make(batch, steps), *(torch.randn(count, batch, size) for count, size in sizes))


def sequence(name: str, layer: Callable[[], nn.Module], *, batch_first: bool = False) -> Model:
    """A layer over sequences of features from its default state."""
    arguments, axes = (features, BATCH_FIRST) if batch_first else (turned, TIME_FIRST)
    return Model(name, lambda: Layer(layer()), arguments, (axes,))


def stateful(name: str, layer: Callable[[], nn.Module], *sizes: tuple[int, int]) -> Model:
    """A layer over sequences of features from a given state."""
    make = LayerFrom if len(sizes) == 1 else LayerFromTwo
    return Model(name, lambda: make(layer()), with_states(turned, *sizes), (TIME_FIRST, *(STATE for _ in sizes)))


def single(name: str, layer: Callable[[], nn.Module]) -> Model:
    """A layer over one sequence without a batch axis."""
    return Model(name, lambda: Layer(layer()), lambda _, steps: (torch.randn(steps, FEATURES),), ({0: "time"},))


def packed(name: str, layer: Callable[[], nn.Module], **options: Any) -> Model:
    """A layer over packed sequences."""
    arguments = with_lengths(features, sorts=options.get("sorts", False))
    return Model(name, lambda: Packed(layer(), **options), arguments, (BATCH_FIRST, ROWS))


def text(name: str, layer: Callable[[], nn.Module], read: Any, width: int = HIDDEN) -> Model:
    """Token ids through an embedding, a layer and a linear layer."""
    return Model(name, lambda: Tokens(layer(), read, width), tokens, (BATCH_FIRST,))


def step(name: str, cell: Callable[[], nn.Module], states: int = 1) -> Model:
    """One step of a single-step cell."""

    def arguments(batch: int, _: int) -> tuple[Any, ...]:
        return (torch.randn(batch, FEATURES), *(torch.randn(batch, HIDDEN) for _ in range(states)))

    make = Step if states == 1 else StepOfTwo
    return Model(name, lambda: make(cell()), arguments, (ROWS,) * (1 + states))


def masked(name: str, layer: Callable[[], nn.Module]) -> Model:
    """One of cellport's cells with lengths."""
    return Model(name, lambda: WithLengths(layer()), with_lengths(turned), (TIME_FIRST, ROWS))


IH, BF = (FEATURES, HIDDEN), {"batch_first": True}

MODELS: list[Model] = [
    sequence("nn.RNN", lambda: nn.RNN(*IH)),
    sequence("nn.RNN relu", lambda: nn.RNN(*IH, nonlinearity="relu")),
    sequence("nn.RNN 2 layers", lambda: nn.RNN(*IH, 2)),
    sequence("nn.RNN bidirectional", lambda: nn.RNN(*IH, bidirectional=True)),
    sequence("nn.RNN batch first, no bias", lambda: nn.RNN(*IH, bias=False, **BF), batch_first=True),
    stateful("nn.RNN given state", lambda: nn.RNN(*IH), (1, HIDDEN)),
    single("nn.RNN unbatched", lambda: nn.RNN(*IH)),
    sequence("nn.LSTM", lambda: nn.LSTM(*IH)),
    sequence("nn.LSTM batch first", lambda: nn.LSTM(*IH, **BF), batch_first=True),
    sequence("nn.LSTM 2 layers", lambda: nn.LSTM(*IH, 2)),
    sequence("nn.LSTM 3 layers, dropout", lambda: nn.LSTM(*IH, 3, dropout=0.5)),
    sequence("nn.LSTM no bias", lambda: nn.LSTM(*IH, bias=False)),
    sequence("nn.LSTM bidirectional", lambda: nn.LSTM(*IH, bidirectional=True)),
    sequence("nn.LSTM 2 layers, bidirectional", lambda: nn.LSTM(*IH, 2, bidirectional=True)),
    sequence("nn.LSTM projected", lambda: nn.LSTM(*IH, proj_size=3)),
    sequence("nn.LSTM projected, 2 layers, bidirectional", lambda: nn.LSTM(*IH, 2, proj_size=3, bidirectional=True)),
    stateful("nn.LSTM given state", lambda: nn.LSTM(*IH), (1, HIDDEN), (1, HIDDEN)),
    stateful("nn.LSTM 2 layers, given state", lambda: nn.LSTM(*IH, 2), (2, HIDDEN), (2, HIDDEN)),
    single("nn.LSTM unbatched", lambda: nn.LSTM(*IH)),
    single("nn.LSTM unbatched, bidirectional", lambda: nn.LSTM(*IH, bidirectional=True)),
    sequence("nn.GRU", lambda: nn.GRU(*IH)),
    sequence("nn.GRU batch first", lambda: nn.GRU(*IH, **BF), batch_first=True),
    sequence("nn.GRU 2 layers", lambda: nn.GRU(*IH, 2)),
    sequence("nn.GRU bidirectional", lambda: nn.GRU(*IH, bidirectional=True)),
    sequence("nn.GRU 2 layers, bidirectional, no bias", lambda: nn.GRU(*IH, 2, bidirectional=True, bias=False)),
    stateful("nn.GRU given state", lambda: nn.GRU(*IH), (1, HIDDEN)),
    single("nn.GRU unbatched", lambda: nn.GRU(*IH)),
    step("nn.RNNCell", lambda: nn.RNNCell(*IH)),
    step("nn.RNNCell relu", lambda: nn.RNNCell(*IH, nonlinearity="relu")),
    step("nn.LSTMCell", lambda: nn.LSTMCell(*IH), 2),
    step("nn.GRUCell", lambda: nn.GRUCell(*IH)),
    Model("loop over nn.LSTMCell", lambda: Looped(nn.LSTMCell(*IH), both=True), features, (BATCH_FIRST,)),
    Model("loop over nn.GRUCell", lambda: Looped(nn.GRUCell(*IH)), features, (BATCH_FIRST,)),
    Model("backward loop over nn.RNNCell, written", lambda: Written(nn.RNNCell(*IH)), features, (BATCH_FIRST,)),
    packed("packed nn.RNN", lambda: nn.RNN(*IH, **BF)),
    packed("packed nn.LSTM", lambda: nn.LSTM(*IH, **BF)),
    packed("packed nn.LSTM, sorted", lambda: nn.LSTM(*IH, **BF), sorts=True),
    packed("packed nn.LSTM 2 layers, bidirectional", lambda: nn.LSTM(*IH, 2, bidirectional=True, **BF)),
    packed("packed nn.LSTM projected", lambda: nn.LSTM(*IH, proj_size=3, **BF)),
    packed("packed nn.GRU bidirectional", lambda: nn.GRU(*IH, bidirectional=True, **BF)),
    packed("packed nn.GRU, padded with -1", lambda: nn.GRU(*IH, **BF), padding=-1.0),
    text("LSTM tagger", lambda: nn.LSTM(*IH, **BF), tag),
    text("bidirectional LSTM tagger", lambda: nn.LSTM(*IH, bidirectional=True, **BF), tag, 2 * HIDDEN),
    text("LSTM classifier, final state", lambda: nn.LSTM(*IH, 2, **BF), classify),
    text("GRU classifier, both final states", lambda: nn.GRU(*IH, bidirectional=True, **BF), classify_both, 2 * HIDDEN),
    text("GRU classifier, last step", lambda: nn.GRU(*IH, **BF), last_step),
    text("RNN classifier, maximum over time", lambda: nn.RNN(*IH, **BF), maximum),
    text("LSTM classifier, attention", lambda: nn.LSTM(*IH, bidirectional=True, **BF), attend, 2 * HIDDEN),
    Model("LSTM from zeros of its own", OwnZeros, features, (BATCH_FIRST,)),
    Model("GRU from a learned state", Learned, features, (BATCH_FIRST,)),
    Model("convolution and GRU", ConvolutionalRecurrent, features, (BATCH_FIRST,)),
    Model("residual normalised LSTMs", Residual, features, (BATCH_FIRST,)),
    Model("RNN over shifted inputs", Shifted, features, (BATCH_FIRST,)),
    Model("bidirectional LSTM into LSTM", Bridged, features, (BATCH_FIRST,)),
    Model(
        "language model, tied, with state",
        LanguageModel,
        lambda batch, steps: (*tokens(batch, steps), tuple(torch.randn(2, batch, HIDDEN) for _ in range(2))),
        (BATCH_FIRST, STATE, STATE),
    ),
    Model(
        "encoder and decoder, teacher forced",
        EncoderDecoder,
        lambda batch, steps: (*tokens(batch, steps), *tokens(batch, steps + 2)),
        (BATCH_FIRST, {0: "batch", 1: "target"}),
    ),
    Model(
        "one LSTM on two inputs",
        Siamese,
        lambda batch, steps: (*features(batch, steps), *features(batch, steps + 1)),
        (BATCH_FIRST, {0: "batch", 1: "other"}),
    ),
    Model(
        "characters in words",
        Hierarchical,
        lambda batch, steps: (torch.randint(VOCABULARY, (batch, steps, 4)),),
        (BATCH_FIRST,),
    ),
    sequence("cells.RNN", lambda: cells.RNN(*IH)),
    sequence("cells.LSTM 2 layers, bidirectional", lambda: cells.LSTM(*IH, 2, bidirectional=True)),
    sequence("cells.GRU, reset before", lambda: cells.GRU(*IH, reset_after=False)),
    sequence("cells.LSTM with peepholes", lambda: cells.LSTM(*IH, peephole=True)),
    sequence("cells.LSTM with coupled gates", lambda: cells.LSTM(*IH, coupled=True)),
    sequence("cells.LayerNormLSTM", lambda: cells.LayerNormLSTM(*IH)),
    sequence("cells.SRU", lambda: cells.SRU(*IH)),
    sequence("cells.SRU 3 layers, bidirectional", lambda: cells.SRU(*IH, 3, bidirectional=True)),
    sequence("cells.SRU version 1, tanh", lambda: cells.SRU(*IH, version=1, activation="tanh")),
    masked("cells.LSTM with lengths", lambda: cells.LSTM(*IH)),
    masked("cells.GRU bidirectional, with lengths", lambda: cells.GRU(*IH, bidirectional=True)),
    masked("cells.SRU bidirectional, with lengths", lambda: cells.SRU(*IH, bidirectional=True)),
    *(sequence(name, make) for name, make in sru_models(FEATURES, HIDDEN)),
    Model("own cell: minGRU", MinGRU, turned, (TIME_FIRST,)),
    Model("own cell: minGRU, reversed", lambda: MinGRU(reverse=True), turned, (TIME_FIRST,)),
    Model("own cell: IndRNN with lengths", Independent, with_lengths(turned), (TIME_FIRST, ROWS)),
    Model(
        "own cell: a named tuple as state",
        Normalised,
        lambda batch, steps: (
            *turned(batch, steps),
            Moments(torch.randn(batch, FEATURES), torch.rand(batch, FEATURES)),
        ),
        (TIME_FIRST, ROWS, ROWS),
    ),
]


def flat(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if leaf is not None]


def by_cellport(model: Model, module: nn.Module, args: tuple[Any, ...], path: Path) -> None:
    to_onnx(module, args, path, dynamic_shapes=_nested(model.axes, args, dict), input_names=_names(args), verify=True)


def by_dynamo(model: Model, module: nn.Module, args: tuple[Any, ...], path: Path) -> None:
    dims = {axis: torch.export.Dim(axis, min=1) for axes in model.axes for axis in axes.values()}

    def named(axes: dict[int, str]) -> dict[int, Any]:
        return {position: dims[axis] for position, axis in axes.items()}

    shapes = _nested(model.axes, args, named)
    torch.onnx.export(module, args, path, dynamo=True, dynamic_shapes=shapes, input_names=_names(args))


def by_torchscript(model: Model, module: nn.Module, args: tuple[Any, ...], path: Path) -> None:
    names = _names(args)
    axes = dict(zip(names, model.axes, strict=True))
    torch.onnx.export(module, args, str(path), dynamo=False, opset_version=20, dynamic_axes=axes, input_names=names)


EXPORTERS = {"torch dynamo": by_dynamo, "torch dynamo=False": by_torchscript, "cellport": by_cellport}


def _names(args: tuple[Any, ...]) -> list[str]:
    return [f"input_{index}" for index in range(len(flat(args)))]


def _nested(axes: tuple[dict[int, str], ...], args: tuple[Any, ...], make: Callable[[dict[int, str]], Any]) -> Any:
    """One entry an argument, nested as the arguments are."""
    leaves = iter(axes)
    return tuple(
        type(each)(*(make(next(leaves)) for _ in each))
        if hasattr(each, "_fields")
        else tuple(make(next(leaves)) for _ in each)
        if isinstance(each, tuple)
        else make(next(leaves))
        for each in args
    )


def verdict(model: Model, module: nn.Module, path: Path) -> tuple[str, str]:
    """What the file is good for, and why not for more."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        first = compare(model, module, session, *EXAMPLE)
    except Exception as error:
        return "refused", f"does not run: {error}"
    if first:
        return "wrong", first
    for batch, steps in CHECKS:
        try:
            failure = compare(model, module, session, batch, steps)
        except Exception as error:
            return "frozen", f"batch {batch}, {steps} steps: {error}"
        if failure:
            return ("frozen" if "shape" in failure else "wrong"), f"batch {batch}, {steps} steps: {failure}"
    return "right", ""


def compare(model: Model, module: nn.Module, session: Any, batch: int, steps: int) -> str:
    """Run the file and PyTorch on the same inputs; say what differs."""
    torch.manual_seed(100 * batch + steps)
    args = model.arguments(batch, steps)
    double = copy.deepcopy(module).double()
    wide = torch.utils._pytree.tree_map(lambda each: each.double() if each.is_floating_point() else each, args)
    torch.set_default_dtype(torch.float64)  # for what forward makes itself
    try:
        with torch.no_grad():
            truth = flat(double(*wide))
    finally:
        torch.set_default_dtype(torch.float32)
    feeds = dict(zip(_names(args), (each.numpy() for each in flat(args)), strict=True))
    present = {each.name for each in session.get_inputs()}
    results = session.run(None, {name: value for name, value in feeds.items() if name in present})
    for index, (value, expected) in enumerate(zip(results, truth, strict=False)):
        if value.shape != tuple(expected.shape):
            return f"output {index} has shape {list(value.shape)}, not {list(expected.shape)}"
        error = np.abs(value - expected.numpy()).max(initial=0)
        if not error <= TOLERANCE * max(1.0, float(expected.abs().max())):
            return f"output {index} is off by {error:.2g}"
    return ""


@contextlib.contextmanager
def quiet() -> Any:
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def judge(model: Model, exporter: str, folder: Path) -> tuple[str, str, float]:
    """Export one model with one exporter: the verdict, why, and the seconds it took."""
    torch.manual_seed(0)
    module = model.make().eval()
    path = folder / "model.onnx"
    torch.manual_seed(1)
    args = model.arguments(*EXAMPLE)
    started = time.perf_counter()
    try:
        with quiet(), torch.no_grad():
            torch._dynamo.reset()
            EXPORTERS[exporter](model, module, args, path)
    except Exception as raised:
        error: BaseException = raised
        while error.__cause__ is not None:
            error = error.__cause__
        return "refused", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", time.perf_counter() - started
    seconds = time.perf_counter() - started
    with quiet():
        found, why = verdict(model, module, path)
    return found, " ".join(why.split())[:300], seconds


def main() -> int:
    parser = argparse.ArgumentParser(description="Which exporter gets which recurrent model right.")
    parser.add_argument("--only", nargs="+", help="models whose name contains one of these")
    parser.add_argument("--exporters", nargs="+", choices=list(EXPORTERS), default=list(EXPORTERS))
    parser.add_argument("--why", action="store_true", help="say what is not right")
    parser.add_argument("--json", type=Path, help="also write the verdicts here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [each for each in MODELS if not arguments.only or any(part in each.name for part in arguments.only)]
    width = max(len(each.name) for each in chosen) + 2
    print("".ljust(width) + "".join(name.ljust(22) for name in arguments.exporters))
    results, counts = (
        [],
        {name: dict.fromkeys(("right", "wrong", "frozen", "refused"), 0) for name in arguments.exporters},
    )
    for model in chosen:
        line, reasons = model.name.ljust(width), []
        for exporter in arguments.exporters:
            with tempfile.TemporaryDirectory() as folder:
                found, why, seconds = judge(model, exporter, Path(folder))
            counts[exporter][found] += 1
            line += f"{found:8}{seconds:6.1f} s".ljust(22)
            results.append(
                {"model": model.name, "exporter": exporter, "verdict": found, "why": why, "seconds": seconds}
            )
            if why:
                reasons.append(f"    {exporter}: {why}")
        print(line, flush=True)
        if arguments.why:
            print(*reasons, sep="\n" if reasons else "", end="\n" if reasons else "", flush=True)
    print(f"\n{len(chosen)} models")
    for exporter, found_counts in counts.items():
        print(f"{exporter:20}" + "  ".join(f"{number} {name}" for name, number in found_counts.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if counts.get("cellport", {"right": len(chosen)})["right"] == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
