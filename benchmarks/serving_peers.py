"""The servers that `cellport serve` is compared with, each a process of its own.

    noop            grpc.aio on uvloop that parses each request and answers a constant: what gRPC costs in Python
    plain FILE      grpc.aio on uvloop around one onnxruntime session, run in the handler: what one writes in an hour
    whole FOLDER    cellport's server with the cutting of requests off, so that they are only padded

Each prints one line of JSON with its address when it listens, as `cellport serve --json` does, and ends on SIGTERM.
"""

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grpc
import numpy as np
import uvloop

from cellport.protos import inference_pb2 as messages

SERVICE = "inference.GRPCInferenceService"
NUMPY = {"INT64": np.int64, "FP32": np.float32}
Infer = Callable[[messages.ModelInferRequest, Any], Awaitable[messages.ModelInferResponse]]


def noop() -> Infer:
    """A handler that answers five zeros."""
    answer = messages.ModelInferResponse(model_name="noop", model_version="1")
    answer.outputs.add(name="logits", datatype="FP32", shape=[1, 5])
    answer.raw_output_contents.append(np.zeros((1, 5), np.float32).tobytes())

    async def infer(request: messages.ModelInferRequest, context: Any) -> messages.ModelInferResponse:  # noqa: ARG001
        return answer

    return infer


def plain(path: Path) -> Infer:
    """A handler that runs the model at once, on the event loop: nothing is faster for one request at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    async def infer(request: messages.ModelInferRequest, context: Any) -> messages.ModelInferResponse:  # noqa: ARG001
        feeds = {
            tensor.name: np.frombuffer(raw, NUMPY[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        wanted = [output.name for output in request.outputs]
        response = messages.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        for name, array in zip(wanted, session.run(wanted, feeds), strict=True):
            response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    return infer


async def ready(request: messages.ServerReadyRequest, context: Any) -> messages.ServerReadyResponse:  # noqa: ARG001
    """Answer that the server is ready."""
    return messages.ServerReadyResponse(ready=True)


async def serve(infer: Infer, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            infer, messages.ModelInferRequest.FromString, messages.ModelInferResponse.SerializeToString
        ),
        "ServerReady": grpc.unary_unary_rpc_method_handler(
            ready, messages.ServerReadyRequest.FromString, messages.ServerReadyResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    await stop.wait()
    await server.stop(1)


def whole(models: Path, front: Any, port: int) -> None:
    """Serve a folder with cellport, requests run whole."""
    from cellport.serve import BatchSettings, EngineSettings, Server, ServerSettings

    settings = ServerSettings(port=port, front=front, engine=EngineSettings(batch=BatchSettings(cut=False)))
    server = Server(models, settings)
    server.serve_forever(lambda: print(json.dumps({"address": server.address}), flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="A server to compare `cellport serve` with.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on, 0 for a free one")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("noop")
    kinds.add_parser("plain").add_argument("path", type=Path)
    padded = kinds.add_parser("whole")
    padded.add_argument("path", type=Path)
    padded.add_argument("--front", default="grpcio")
    arguments = parser.parse_args()
    if arguments.kind == "whole":
        whole(arguments.path, arguments.front, arguments.port)
    else:
        uvloop.run(serve(noop() if arguments.kind == "noop" else plain(arguments.path), arguments.port))


if __name__ == "__main__":
    main()
