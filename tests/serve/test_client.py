"""cellport's own clients."""

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from cellport.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from cellport.serve import AsyncClient, Client, Server
from cellport.serve.exchange import TensorInfo

from .wire import tokens_of


def test_a_client_sees_the_server_its_models_and_their_states(client: Client) -> None:
    assert client.live()
    assert client.ready()
    assert client.ready("lstm", version="1")
    assert client.server().name == "cellport"
    info = client.metadata("gru", states=True)
    assert info.inputs[0] == TensorInfo(name="tokens", datatype="INT64", shape=(-1, -1))
    assert [each.name for each in info.inputs] == ["tokens", "lengths", "h"]
    assert [each.name for each in client.metadata("gru").inputs] == ["tokens", "lengths"]


def test_plain_lists_can_be_sent_and_arrays_come_back(client: Client) -> None:
    answer = client.infer("lstm", {"tokens": [[1, 2, 3]]}, ["last"])
    assert list(answer) == ["last"]
    assert answer["last"].shape == (1, 4)
    assert answer["last"].dtype == np.float32


def test_errors_come_as_the_exceptions_of_their_status(client: Client, server: Server) -> None:
    with pytest.raises(NotFoundError, match="'nobody'") as missing:
        client.infer("nobody", {})
    assert missing.value.status == "NOT_FOUND"
    with pytest.raises(InvalidRequestError, match="'tokens' is missing") as invalid:
        client.infer("lstm", {})
    assert invalid.value.status == "INVALID_ARGUMENT"
    with pytest.raises(DeadlineExceededError) as late:
        client.infer("slow", {"x": np.ones((1, 1), np.float32)}, timeout=1e-6)
    assert late.value.status == "DEADLINE_EXCEEDED"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    import socket

    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        with Client(address, timeout=30) as client, pytest.raises(UnavailableError) as refusal:
            client.live()
    assert refusal.value.status == "UNAVAILABLE"


def test_a_sequence_is_started_by_its_first_step_and_ended_by_its_context(client: Client) -> None:
    tokens = tokens_of(5, seed=1)
    whole = client.infer("lstm", {"tokens": tokens})
    with client.sequence("lstm", 700) as sequence:
        for step in range(5):
            answer = sequence.step({"tokens": tokens[:, step]})
        np.testing.assert_allclose(answer["last"], whole["last"], atol=1e-5)
        other = client.sequence("lstm")
        assert other.id != sequence.id
    with pytest.raises(PreconditionError, match="sequence 700 of model 'lstm' has ended"):
        client.send(_step(700))


def _step(sequence: int) -> Any:
    from cellport.serve.exchange import write_request
    from cellport.serve.requests import Control

    return write_request("lstm", {"tokens": [[1]]}, None, control=Control(id=sequence))


def test_an_error_inside_a_sequence_is_not_hidden_by_its_end_and_a_wrong_step_can_be_made_good(client: Client) -> None:
    with client.sequence("lstm") as sequence:
        with pytest.raises(InvalidRequestError, match="99"):
            sequence.step({"tokens": [[99]]})
        sequence.step({"tokens": [[9]]})
        sequence.step({"tokens": [[9]]}, end=True)
    with pytest.raises(KeyError, match="mine"):
        _fail_inside_a_sequence(client)


def _fail_inside_a_sequence(client: Client) -> None:
    with client.sequence("lstm") as sequence:
        sequence.step({"tokens": [[9]]})
        raise KeyError("mine")


def test_a_stream_yields_every_answer_with_its_index_and_errors_among_them(client: Client) -> None:
    requests = [{"tokens": tokens_of(1 + n, seed=n)} for n in range(5)]
    requests[2] = {"tokens": np.array([[77]])}
    answers = {each.index: each for each in client.stream("lstm", requests)}
    assert sorted(answers) == [0, 1, 2, 3, 4]
    assert [each for each in answers if answers[each].error is not None] == [2]
    assert isinstance(answers[2].error, InvalidRequestError)
    assert answers[4].outputs["tags"].shape == (1, 5, 4)


def test_a_stream_of_one_sequence_answers_in_order_and_ends_it(client: Client) -> None:
    tokens = tokens_of(6, seed=3)
    steps = [{"tokens": tokens[:, n]} for n in range(6)]
    answers = list(client.stream("lstm", steps, ["last"], sequence=701))
    assert [each.index for each in answers] == list(range(6))
    np.testing.assert_allclose(answers[-1].outputs["last"], client.infer("lstm", {"tokens": tokens})["last"], atol=1e-5)
    with pytest.raises(PreconditionError, match="has ended"):
        client.send(_step(701))


def test_a_stream_that_its_caller_leaves_is_closed(client: Client) -> None:
    def forever() -> Any:
        while True:
            yield {"tokens": [[1]]}

    for answer in client.stream("lstm", forever()):
        assert answer.error is None
        break
    assert client.ready()


async def test_the_async_client_does_what_the_client_does(server: Server, client: Client) -> None:
    tokens = tokens_of(4, seed=5)
    expected = client.infer("gru", {"tokens": tokens})["last"]

    async def steps() -> AsyncIterator[dict[str, Any]]:
        for step in range(4):
            yield {"tokens": tokens[:, step]}

    async with AsyncClient(server.address, timeout=60) as connected:
        assert await connected.live()
        assert await connected.ready()
        assert await connected.ready("gru")
        assert (await connected.server()).name == "cellport"
        assert await connected.metadata("gru", states=True) == client.metadata("gru", states=True)
        np.testing.assert_array_equal((await connected.infer("gru", {"tokens": tokens}))["last"], expected)
        async with connected.sequence("gru") as sequence:
            for step in range(4):
                answer = await sequence.step({"tokens": tokens[:, step]})
        np.testing.assert_allclose(answer["last"], expected, atol=1e-5)
        answers = [each async for each in connected.stream("gru", steps(), sequence="async")]
        np.testing.assert_allclose(answers[-1].outputs["last"], expected, atol=1e-5)
        answers = [each async for each in connected.stream("gru", [{"tokens": tokens}])]
        np.testing.assert_array_equal(answers[0].outputs["last"], expected)
        with pytest.raises(NotFoundError, match="'nobody'"):
            await connected.infer("nobody", {})
        # Whether the server's word or the client's own clock comes first is a matter of luck.
        errors: list[Any] = []
        try:
            async for each in connected.stream("slow", [{"x": np.ones((1, 1), np.float32)}], timeout=1e-3):
                errors.append(each.error)
        except DeadlineExceededError as error:
            errors.append(error)
        assert [type(error) for error in errors[:1]] == [DeadlineExceededError]


def test_the_clients_need_neither_onnxruntime_nor_the_servers_other_packages(server: Server) -> None:
    code = f"""
import sys
for name in ("onnxruntime", "uvloop", "grpc_health", "grpc_reflection", "onnx", "torch", "ml_dtypes"):
    sys.modules[name] = None
from cellport.serve import AsyncClient, Client
with Client({server.address!r}, timeout=60) as client:
    assert client.infer("lstm", {{"tokens": [[1]]}})["last"].shape == (1, 4)
    with client.sequence("lstm") as sequence:
        sequence.step({{"tokens": [[1]]}})
    try:
        client.infer("nobody", {{}})
    except LookupError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "refused\n"


def test_the_public_names_are_these() -> None:
    import cellport.serve

    assert cellport.serve.__all__ == [
        "AsyncClient",
        "AsyncEngine",
        "BatchSettings",
        "Client",
        "Engine",
        "EngineSettings",
        "Model",
        "SequenceSettings",
        "Server",
        "ServerSettings",
        "SessionSettings",
    ]
    for name in cellport.serve.__all__:
        assert getattr(cellport.serve, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Servant'"):
        cellport.serve.Servant  # noqa: B018
