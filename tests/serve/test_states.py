"""States of sequences in their clients' hands: taken out, put back here or elsewhere, forked."""

from pathlib import Path

import grpc
import numpy as np
import pytest

from cellport.errors import InvalidRequestError, NotFoundError, PreconditionError
from cellport.protos import sequences_pb2 as messages
from cellport.serve import AsyncClient, Client, Engine, Server
from cellport.serve.exchange import Snapshot, write_request
from cellport.serve.requests import Control

from .wire import tokens_of


def step(client: Client, tokens: object, name: int | str, *, start: bool = False, number: int | None = None) -> object:
    message = write_request("lstm", {"tokens": tokens}, None, control=Control(id=name, start=start))  # type: ignore[dict-item]
    if number is not None:
        message.parameters["sequence_step"].int64_param = number
    return client.send(message)["last"]


def whole(client: Client, tokens: object) -> object:
    return client.infer("lstm", {"tokens": tokens})["last"]  # type: ignore[dict-item]


def test_a_sequence_goes_on_in_another_server_from_its_exported_state(client: Client, folder: Path) -> None:
    tokens = tokens_of(6, seed=3)
    step(client, tokens[:, :4], 901, start=True)
    snapshot = client.export_state("lstm", 901)
    assert (snapshot.model, snapshot.version, snapshot.step) == ("lstm", "2", None)
    assert {name: array.shape for name, array in snapshot.states.items()} == {"h": (1, 1, 8), "c": (1, 1, 8)}
    with Server(folder / "lstm", port=0) as other, Client(other.address) as elsewhere:
        assert elsewhere.import_state(snapshot, "moved") == "moved"
        np.testing.assert_allclose(step(elsewhere, tokens[:, 4:], "moved"), whole(client, tokens), atol=1e-5)
        chosen = elsewhere.import_state(snapshot)
        np.testing.assert_allclose(step(elsewhere, tokens[:, 4:], chosen), whole(client, tokens), atol=1e-5)
    np.testing.assert_allclose(step(client, tokens[:, 4:], 901), whole(client, tokens), atol=1e-5)


def test_a_fork_goes_its_own_way(client: Client) -> None:
    step(client, [[1, 2]], 902, start=True)
    assert client.fork("lstm", 902, "branch") == "branch"
    chosen = client.fork("lstm", 902)
    for name, token in ((902, 3), ("branch", 4), (chosen, 5)):
        np.testing.assert_allclose(step(client, [[token]], name), whole(client, [[1, 2, token]]), atol=1e-5)


def test_numbered_steps_go_on_from_the_number_of_the_state(client: Client) -> None:
    for number in range(2):
        step(client, [[number]], 903, start=number == 0, number=number)
    snapshot = client.export_state("lstm", 903)
    assert snapshot.step == 1
    name = client.import_state(snapshot)
    with pytest.raises(PreconditionError, match="follows step 1; accepted: 2"):
        step(client, [[7]], name, number=4)
    np.testing.assert_allclose(step(client, [[7]], name, number=2), whole(client, [[0, 1, 7]]), atol=1e-5)


def test_states_that_do_not_fit_and_sequences_that_do_not_run_are_refused_by_name(client: Client) -> None:
    good = np.zeros((1, 1, 8), np.float32)
    with pytest.raises(NotFoundError, match="sequence 999 of model 'lstm' was never started"):
        client.export_state("lstm", 999)
    with pytest.raises(NotFoundError, match="model 'nobody' is not served"):
        client.fork("nobody", 999)
    with pytest.raises(InvalidRequestError, match="state 'x' is not one of the model's; accepted: 'h', 'c'"):
        client.import_state(Snapshot(model="lstm", version="", states={"x": good}))
    with pytest.raises(InvalidRequestError, match=r"state 'h' has shape \[1, 1, 9\]; accepted"):
        client.import_state(Snapshot(model="lstm", version="", states={"h": np.zeros((1, 1, 9), np.float32)}))
    with pytest.raises(InvalidRequestError, match="model 'affine' has no states"):
        client.import_state(Snapshot(model="affine", version="", states={}))
    step(client, [[1]], 904, start=True)
    with pytest.raises(InvalidRequestError, match="sequence 904 is to be forked into itself"):
        client.fork("lstm", 904, 904)


def test_bytes_that_are_no_state_are_refused(client: Client, server: Server) -> None:
    state = messages.SequenceState(model_name="lstm")
    state.states.add(name="h", datatype="FP32", shape=[1, 1, 8], raw_contents=b"123")
    empty = messages.SequenceState(model_name="lstm")
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            "/cellport.SequenceStates/Import",
            request_serializer=messages.ImportRequest.SerializeToString,
            response_deserializer=messages.SequenceReference.FromString,
        )
        for wrong, told in (
            (messages.ImportRequest(state=state), "state 'h' has 3 raw bytes; shape [1, 1, 8] of FP32 needs 32"),
            (messages.ImportRequest(state=empty, sequence={"model_name": "gru"}), "the state is of model 'lstm'"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call(wrong)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert told in error.value.details()


async def test_the_async_client_does_the_same(server: Server, client: Client) -> None:
    step(client, [[1, 2]], 905, start=True)
    async with AsyncClient(server.address) as connected:
        snapshot = await connected.export_state("lstm", 905)
        name = await connected.import_state(snapshot)
        branch = await connected.fork("lstm", name, 906)
        assert branch == 906
    for each in (name, 906):
        np.testing.assert_allclose(step(client, [[3]], each), whole(client, [[1, 2, 3]]), atol=1e-5)


def test_a_state_is_that_of_the_last_step_that_is_done(folder: Path) -> None:
    with Engine(folder / "lstm") as engine, engine.open_sequence("lstm") as sequence:
        sequence.step({"tokens": np.array([1])})
        before = sequence.state()
        sequence.step({"tokens": np.array([2])})
        assert np.abs(sequence.state()["h"] - before["h"]).max() > 0
