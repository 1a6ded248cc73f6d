"""Write request bodies, and the answers they should get, for grpcload.

Every file is a run of frames: one zero byte, the length as 4 big-endian bytes, the content. In a body file the content
is a serialized ModelInferRequest, so that the file is also what goes on the wire; in an expectation file it is the
float32 outputs of that request, concatenated in the order in which they are requested.

As a library: `token_requests`, `float_requests` and `sequence_requests` return serialized requests
with their inputs, `expected` and `expected_steps` run an ONNX file on those inputs, and `write_frames` writes either.
"""

import argparse
import json
import math
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellport.protos.inference_pb2 import ModelInferRequest

Array = NDArray[Any]
Inputs = dict[str, Array]

REQUEST_ID = "~" * 8  # grpcload puts 8 hex digits here and requires the answer to echo them
SEQUENCE_ID = 2**63 - 1  # 9 bytes as a varint, the longest positive int64: grpcload puts its own of that length here
SEQUENCE_MARK = b"\xff" * 8 + b"\x7f"
GROUP_MARK = "@" * 16  # grpcload puts the sequence's number here as 16 hex digits, everywhere in the request
DATATYPES = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}


def request(
    model: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    request_id: str = "",
    sequence: tuple[bool, bool] | None = None,
    rows: int = 0,
) -> bytes:
    """Return a serialized ModelInferRequest.

    Args:
        model: model name.
        inputs: arrays by input name, int64 or float32; they go into raw_input_contents.
        outputs: names of the outputs to request; none asks for all.
        request_id: the request's id.
        sequence: None, or flags of start and end; the ids are then grpcload's placeholders.
        rows: 0 for a request of one sequence; else its rows, each in a sequence of its own.

    Raises:
        ValueError: the content happens to contain one of grpcload's placeholders.
    """
    message = ModelInferRequest(model_name=model, id=request_id)
    for name, array in inputs.items():
        message.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        message.raw_input_contents.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    if sequence is not None and rows:
        ids = [f"{GROUP_MARK}{row}" for row in range(rows)]
        message.parameters["sequence_ids"].string_param = json.dumps(ids)
        for name, marked in zip(("sequence_starts", "sequence_ends"), sequence, strict=True):
            if marked:
                message.parameters[name].string_param = json.dumps(list(range(rows)))
    elif sequence is not None:
        message.parameters["sequence_id"].int64_param = SEQUENCE_ID
        message.parameters["sequence_start"].bool_param = sequence[0]
        message.parameters["sequence_end"].bool_param = sequence[1]
    body: bytes = message.SerializeToString()
    marks = {
        REQUEST_ID.encode(): int(request_id == REQUEST_ID),
        SEQUENCE_MARK: int(sequence is not None and not rows),
        GROUP_MARK.encode(): rows if sequence is not None else 0,
    }
    if any(body.count(mark) != count for mark, count in marks.items()):
        raise ValueError(f"the inputs of a request to {model!r} contain a placeholder of grpcload; use another seed")
    return body


def lengths(
    rng: np.random.Generator, count: int, distribution: str, low: int, high: int, mean: float, sigma: float
) -> NDArray[np.int64]:
    """Return `count` sequence lengths in [low, high]: fixed (all `mean`), uniform, or log-normal and clipped.

    `mean` and `sigma` belong to the log-normal before clipping; sigma is that of the logarithm.
    """
    if distribution == "fixed":
        return np.full(count, round(mean))
    if distribution == "uniform":
        return rng.integers(low, high + 1, count)
    drawn = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def token_requests(
    model: str,
    name: str,
    outputs: Sequence[str],
    lengths: Iterable[int],
    vocabulary: int,
    rng: np.random.Generator,
    *,
    request_id: str = "",
) -> tuple[list[bytes], list[Inputs]]:
    """Return (bodies, inputs) of requests with one INT64 input [1, T], T from `lengths`, values below `vocabulary`."""
    inputs = [{name: rng.integers(0, vocabulary, (1, int(length)))} for length in lengths]
    return [request(model, each, outputs, request_id=request_id) for each in inputs], inputs


def float_requests(
    model: str,
    name: str,
    outputs: Sequence[str],
    shape: Sequence[int],
    count: int,
    rng: np.random.Generator,
    *,
    request_id: str = "",
) -> tuple[list[bytes], list[Inputs]]:
    """Return (bodies, inputs) of `count` requests with one FP32 input of the given shape, standard normal values."""
    inputs = [{name: rng.standard_normal(shape, np.float32)} for _ in range(count)]
    return [request(model, each, outputs, request_id=request_id) for each in inputs], inputs


def sequence_requests(
    model: str,
    name: str,
    outputs: Sequence[str],
    width: int,
    variants: int,
    rng: np.random.Generator,
    *,
    rows: int = 0,
    request_id: str = "",
) -> tuple[list[bytes], list[Inputs]]:
    """Return (bodies, inputs) of start, mid and end requests of each variant; one FP32 input [rows or 1, width].

    All three requests of a variant carry the same values: the expected answer of a step then depends on the step
    alone, not on the sequence's length. Variants differ, so that a mixed-up state shows at any step. With `rows` every
    request carries a step of as many sequences, which start and end together.
    """
    inputs = [{name: rng.standard_normal((max(rows, 1), width), np.float32)} for _ in range(variants)]
    kinds = ((True, False), (False, False), (False, True))
    bodies = [
        request(model, each, outputs, request_id=request_id, sequence=kind, rows=rows)
        for each in inputs
        for kind in kinds
    ]
    return bodies, inputs


def _session(path: Path) -> Any:
    import onnxruntime  # only expectations need it

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def joined(arrays: Iterable[Any]) -> bytes:
    """Return the content of the expectation frame of one answer, from its outputs in order."""
    return b"".join(np.asarray(array).astype("<f4").tobytes() for array in arrays)


def expected(onnx_file: Path, inputs: Iterable[Inputs], outputs: Sequence[str]) -> list[bytes]:
    """Run the model on each of `inputs` alone (batch 1); return the content of each expectation frame."""
    session = _session(onnx_file)
    return [joined(session.run(outputs, each)) for each in inputs]


def expected_steps(
    onnx_file: Path, inputs: Iterable[Inputs], outputs: Sequence[str], states: Mapping[str, str], length: int
) -> list[bytes]:
    """Step the model `length` times from zero state with each of `inputs`; return the frames, step after step.

    Args:
        onnx_file: a model of one step.
        inputs: its inputs but for the states.
        outputs: names of the outputs that are compared.
        states: output name by input name of each state tensor; dynamic axes of a state have size 1.
        length: steps.
    """
    session = _session(onnx_file)
    shapes = {each.name: [d if isinstance(d, int) else 1 for d in each.shape] for each in session.get_inputs()}
    frames = []
    for each in inputs:
        state = {name: np.zeros(shapes[name], np.float32) for name in states}
        for _ in range(length):
            results = session.run([*outputs, *states.values()], {**each, **state})
            frames.append(joined(results[: len(outputs)]))
            state = dict(zip(states, results[len(outputs) :], strict=True))
    return frames


def write_frames(path: Path, contents: Iterable[bytes]) -> None:
    """Write each of `contents` as one frame."""
    with path.open("wb") as file:
        for content in contents:
            file.write(struct.pack(">BI", 0, len(content)) + content)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", required=True, help="model name in the requests")
    common.add_argument("--input", required=True, help="name of the input")
    common.add_argument("--output", action="append", required=True, help="FP32 output to request; may be repeated")
    common.add_argument("--bodies", type=Path, required=True, help="file to write the requests to")
    common.add_argument("--onnx", type=Path, help="ONNX file that computes the expected answers")
    common.add_argument("--expect", type=Path, help="file to write the expected answers to")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--ids", action="store_true", help="give every request an id that its answer must echo")
    kinds = parser.add_subparsers(dest="kind", required=True)
    tokens = kinds.add_parser("tokens", parents=[common], help="INT64 [1, T]")
    tokens.add_argument("--count", type=int, default=512)
    tokens.add_argument("--distribution", choices=("lognormal", "uniform", "fixed"), default="lognormal")
    tokens.add_argument("--low", type=int, default=4)
    tokens.add_argument("--high", type=int, default=128)
    tokens.add_argument("--mean", type=float, default=32)
    tokens.add_argument("--sigma", type=float, default=0.7)
    tokens.add_argument("--vocabulary", type=int, default=20000)
    floats = kinds.add_parser("floats", parents=[common], help="FP32 of one shape")
    floats.add_argument("--count", type=int, default=1)
    floats.add_argument("--shape", required=True, help="such as 1,128")
    sequence = kinds.add_parser("sequence", parents=[common], help="start, mid and end requests, FP32 [1, D]")
    sequence.add_argument("--width", type=int, required=True, help="D")
    sequence.add_argument("--variants", type=int, default=16)
    sequence.add_argument(
        "--state", action="append", default=[], metavar="IN=OUT", help="state of the ONNX file; may be repeated"
    )
    sequence.add_argument("--length", type=int, default=50, help="steps to compute expected answers for")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    if bool(args.onnx) != bool(args.expect):
        parser.error("--onnx and --expect go together")

    rng = np.random.default_rng(args.seed)
    request_id = REQUEST_ID if args.ids else ""
    head = args.model, args.input, args.output
    if args.kind == "tokens":
        drawn = lengths(rng, args.count, args.distribution, args.low, args.high, args.mean, args.sigma)
        bodies, inputs = token_requests(*head, drawn, args.vocabulary, rng, request_id=request_id)
        print(f"lengths: mean {drawn.mean():.2f}, from {drawn.min()} to {drawn.max()}", file=sys.stderr)
    elif args.kind == "floats":
        shape = tuple(int(size) for size in args.shape.split(","))
        bodies, inputs = float_requests(*head, shape, args.count, rng, request_id=request_id)
    else:
        bodies, inputs = sequence_requests(*head, args.width, args.variants, rng, request_id=request_id)
    write_frames(args.bodies, bodies)
    if args.onnx and args.kind == "sequence":
        states = dict(pair.split("=", 1) for pair in args.state)
        write_frames(args.expect, expected_steps(args.onnx, inputs, args.output, states, args.length))
    elif args.onnx:
        write_frames(args.expect, expected(args.onnx, inputs, args.output))


if __name__ == "__main__":
    main()
