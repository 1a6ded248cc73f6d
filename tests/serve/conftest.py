"""A server with every model of `models`, and clients that call it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc

from cellport.serve import Client, Server, ServerSettings
from cellport.serve.envoy_config import why_not
from cellport.serve.server import Front

from . import models

FRONTS = ("grpcio", pytest.param("envoy", marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not()))))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: an LSTM of two versions, a GRU, and models with other traits."""
    root = tmp_path_factory.mktemp("models")
    models.save_lstm(root / "lstm" / "1" / "model.onnx", seed=7)
    models.save_lstm(root / "lstm" / "2" / "model.onnx")
    models.save_lstm(root / "acausal" / "1" / "model.onnx", causal=False)
    models.save_gru(root / "gru" / "1" / "model.onnx")
    models.save_steps(root / "sums" / "1" / "model.onnx")
    models.save_affine(root / "affine" / "1" / "model.onnx")
    models.save_every_type(root / "every" / "1" / "model.onnx")
    models.save_fussy(root / "fussy" / "1" / "model.onnx")
    models.save_slow(root / "slow" / "1" / "model.onnx", loops=300)
    return root


@pytest.fixture(scope="session", params=FRONTS)
def front(request: pytest.FixtureRequest) -> Front:
    """What carries the calls; whatever a client is told must not depend on it."""
    return request.param


@pytest.fixture(scope="session")
def server(folder: Path, front: Front) -> Iterator[Server]:
    with Server(folder, ServerSettings(front=front), port=0) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address, timeout=60) as connected:
        yield connected


@pytest.fixture
def triton(server: Server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    connected = tritonclient.grpc.InferenceServerClient(server.address)
    yield connected
    connected.close()
