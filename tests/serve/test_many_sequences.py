"""Steps of many sequences in a message, numbered steps, ids that the server chooses, and limits on states."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from cellport.errors import InvalidRequestError, SequenceNotFoundError, StepNumberError
from cellport.serve import Engine, EngineSettings
from cellport.serve.requests import Control, Request
from cellport.serve.settings import SequenceSettings

from .wire import tokens_of, triton_input

Triton = triton_grpc.InferenceServerClient


def send(triton: Triton, tokens: Any, **parameters: Any) -> Any:
    own = ("sequence_id", "sequence_start", "sequence_end")
    options = {name: parameters.pop(name) for name in own if name in parameters}
    return triton.infer("lstm", [triton_input("tokens", tokens)], parameters=parameters, **options)


def refusal(triton: Triton, tokens: Any, **parameters: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        send(triton, tokens, **parameters)
    return error.value.status().removeprefix("StatusCode."), error.value.message()


def whole(triton: Triton, tokens: Any) -> Any:
    return triton.infer("lstm", [triton_input("tokens", tokens)]).as_numpy("last")


def test_a_message_carries_the_steps_of_many_sequences_that_start_and_end_when_they_will(triton: Triton) -> None:
    tokens = tokens_of(6, seed=0, rows=3)
    ids: list[int | str] = [801, "camera", 803]
    send(triton, tokens[:2, :2], sequence_ids=json.dumps(ids[:2]), sequence_starts="[0, 1]")
    # The third begins, with a step left out of the time axis, and in another order.
    answer = send(triton, tokens[[2, 0, 1], 2], sequence_ids=json.dumps([803, 801, "camera"]), sequence_starts="[0]")
    assert answer.as_numpy("tags").shape == (3, 4)
    expected = [whole(triton, tokens[2:3, 2:3]), whole(triton, tokens[:1, :3]), whole(triton, tokens[1:2, :3])]
    np.testing.assert_allclose(answer.as_numpy("last"), np.concatenate(expected), atol=1e-5)
    answer = send(triton, tokens[:, 3:], sequence_ids=json.dumps(ids), sequence_ends="[0]")
    np.testing.assert_allclose(answer.as_numpy("last")[1:2], whole(triton, tokens[1:2]), atol=1e-5)
    assert refusal(triton, tokens[:1], sequence_ids="[801]")[0] == "FAILED_PRECONDITION"
    # A sequence may go on by itself.
    last = triton.infer("lstm", [triton_input("tokens", [[4]])], sequence_id="camera", sequence_end=True)
    both = np.concatenate([tokens[1:2], [[4]]], axis=1)
    np.testing.assert_allclose(last.as_numpy("last"), whole(triton, both), atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sequence_ids": "[1"}, "'sequence_ids' is '[1'; accepted: a JSON array of ids, one for each row"),
        ({"sequence_ids": "[]"}, "sequence_ids is []; accepted: at least one, each only once"),
        ({"sequence_ids": "[7, 7]"}, "each only once"),
        ({"sequence_ids": "[7, true]"}, "holds True; accepted: integers and strings"),
        ({"sequence_ids": "[7, 0]"}, "sequence_id is 0"),
        ({"sequence_ids": "[7, 8, 9]"}, "'tokens' has 2 rows inside a sequence; accepted: 3, one for each sequence id"),
        ({"sequence_ids": "[7, 8]", "sequence_starts": "[2]"}, "'sequence_starts' names row 2; accepted: 0 to 1"),
        ({"sequence_ids": "[7, 8]", "sequence_starts": "[0, 1]", "sequence_steps": "[1]"}, "accepted: 2 integers"),
        ({"sequence_ids": "[7, 8]", "sequence_id": 3}, "'sequence_id' and 'sequence_ids' are both given"),
        ({"sequence_step": 3}, "'sequence_step' is set but 'sequence_id' is None"),
        ({"sequence_id": 3, "sequence_step": -2}, "sequence_step is -2; accepted: at least 0"),
        ({"sequence_new": 1}, "'sequence_new' is 1; accepted: bool_param"),
    ],
)
def test_wrong_parameters_are_refused_by_name(triton: Triton, parameters: dict[str, Any], message: str) -> None:
    status, told = refusal(triton, [[1], [2]], **parameters)
    assert status == "INVALID_ARGUMENT"
    assert message in told


def test_one_unknown_sequence_refuses_the_message_and_no_other_sequence_advances(triton: Triton) -> None:
    send(triton, [[1], [2]], sequence_ids="[811, 812]", sequence_starts="[0, 1]")
    status, message = refusal(triton, [[3], [3], [3]], sequence_ids="[811, 899, 812]")
    assert status == "NOT_FOUND"
    assert "sequence 899 of model 'lstm' was never started" in message
    answer = send(triton, [[5], [5]], sequence_ids="[811, 812]", sequence_ends="[0, 1]")
    expected = np.concatenate([whole(triton, [[1, 5]]), whole(triton, [[2, 5]])])
    np.testing.assert_allclose(answer.as_numpy("last"), expected, atol=1e-5)


def test_a_repeated_step_is_answered_again_and_done_once(triton: Triton) -> None:
    first = send(triton, [[1]], sequence_id=821, sequence_start=True, sequence_step=0)
    again = send(triton, [[1]], sequence_id=821, sequence_start=True, sequence_step=0)
    np.testing.assert_array_equal(first.as_numpy("last"), again.as_numpy("last"))
    answers = [send(triton, [[2]], sequence_id=821, sequence_step=1).as_numpy("last") for _ in range(3)]
    for answer in answers:
        np.testing.assert_allclose(answer, whole(triton, [[1, 2]]), atol=1e-5)
        np.testing.assert_array_equal(answer, answers[0])
    ends = [send(triton, [[3]], sequence_id=821, sequence_step=2, sequence_end=True) for _ in range(2)]
    np.testing.assert_array_equal(ends[0].as_numpy("last"), ends[1].as_numpy("last"))
    np.testing.assert_allclose(ends[0].as_numpy("last"), whole(triton, [[1, 2, 3]]), atol=1e-5)
    assert refusal(triton, [[3]], sequence_id=821, sequence_step=3)[0] == "FAILED_PRECONDITION"


def test_a_gap_an_old_step_and_a_step_that_asks_something_else_are_refused(triton: Triton) -> None:
    for number in range(3):
        send(triton, [[number]], sequence_id=822, sequence_start=number == 0, sequence_step=number)
    for number, told in ((4, "follows step 2; accepted: 3, or 2 again"), (1, "follows step 2"), (2, "other inputs")):
        status, message = refusal(triton, [[9]], sequence_id=822, sequence_step=number)
        assert status == "FAILED_PRECONDITION"
        assert f"step {number} of sequence 822 of model 'lstm'" in message
        assert told in message
    answer = send(triton, [[3]], sequence_id=822, sequence_step=3, sequence_end=True)
    np.testing.assert_allclose(answer.as_numpy("last"), whole(triton, [[0, 1, 2, 3]]), atol=1e-5)


def test_a_new_sequence_of_an_old_id_is_not_taken_for_a_repetition(triton: Triton) -> None:
    for token in (1, 2):
        answer = send(triton, [[token]], sequence_id=823, sequence_start=True, sequence_end=True, sequence_step=0)
        np.testing.assert_allclose(answer.as_numpy("last"), whole(triton, [[token]]), atol=1e-5)


def test_a_message_of_many_numbered_steps_is_repeated_whole_or_not(triton: Triton) -> None:
    def message(ids: str, steps: str, **more: Any) -> Any:
        return send(triton, [[1], [2]], sequence_ids=ids, sequence_steps=steps, **more)

    first = message("[831, 832]", "[0, 0]", sequence_starts="[0, 1]").as_numpy("last")
    again = message("[831, 832]", "[0, 0]", sequence_starts="[0, 1]").as_numpy("last")
    np.testing.assert_array_equal(first, again)
    send(triton, [[5]], sequence_id=831, sequence_step=1)
    status, told = refusal(triton, [[5], [6]], sequence_ids="[831, 832]", sequence_steps="[1, 1]")
    assert status == "FAILED_PRECONDITION"
    assert "done with other inputs" in told
    answer = send(triton, [[6]], sequence_id=832, sequence_step=1).as_numpy("last")
    np.testing.assert_allclose(answer, whole(triton, [[2, 6]]), atol=1e-5)


def test_an_answer_that_is_too_large_to_remember_is_not_given_twice(folder: Path) -> None:
    settings = EngineSettings(sequences=SequenceSettings(answer_bytes=8))
    with Engine(folder / "lstm", settings) as engine:
        for number in range(2):
            request = Request(
                model="lstm",
                inputs={"tokens": np.array([[1]])},
                control=Control(id=1, start=number == 0, step=number),
            )
            engine.call(request)
        with pytest.raises(StepNumberError, match="had more than 8 bytes and was not remembered"):
            engine.call(request)


def test_the_server_chooses_an_id_where_it_is_asked_to(triton: Triton) -> None:
    chosen = [
        send(triton, [[1]], sequence_new=True).get_response().parameters["sequence_id"].string_param for _ in range(2)
    ]
    assert len(set(chosen)) == 2
    answer = send(triton, [[2]], sequence_id=chosen[0], sequence_end=True)
    np.testing.assert_allclose(answer.as_numpy("last"), whole(triton, [[1, 2]]), atol=1e-5)
    send(triton, [[2]], sequence_id=chosen[1], sequence_end=True)


def test_a_client_may_keep_the_state_itself(triton: Triton) -> None:
    first = send(triton, [[1, 2]], return_state=True)
    given = [triton_input("tokens", [[3]]), *(triton_input(name, first.as_numpy(f"{name}_out")) for name in ("h", "c"))]
    answer = triton.infer("lstm", given, parameters={"return_state": True})
    np.testing.assert_allclose(answer.as_numpy("last"), whole(triton, [[1, 2, 3]]), atol=1e-5)
    assert answer.as_numpy("c_out").shape == (1, 1, 8)


def test_a_sequence_is_evicted_at_the_end_of_its_life_however_busy(folder: Path) -> None:
    now = [0.0]
    settings = EngineSettings(sequences=SequenceSettings(idle_seconds=math.inf, lifetime_seconds=10))
    with Engine(folder / "gru", settings, clock=lambda: now[0]) as engine:
        sequence = engine.open_sequence("gru")
        for now[0] in (4.0, 8.0):
            sequence.step({"tokens": np.array([1])})
        now[0] = 12.0
        with pytest.raises(SequenceNotFoundError, match="was evicted 10 s after its start"):
            sequence.step({"tokens": np.array([1])})


def test_states_are_held_up_to_a_budget_of_bytes(folder: Path) -> None:
    settings = EngineSettings(sequences=SequenceSettings(state_bytes=3 * 2 * 8 * 4))  # three of an LSTM of 8
    with Engine(folder / "lstm", settings) as engine:
        sequences = [engine.open_sequence("lstm") for _ in range(4)]
        with pytest.raises(SequenceNotFoundError, match="to make room; at most 192 bytes of states are held"):
            sequences[0].step({"tokens": np.array([1])})
        for sequence in sequences[1:]:
            sequence.step({"tokens": np.array([1])})
        for sequence in sequences[1:]:
            sequence.end()
        assert engine.repository.get("lstm").slots.used == 0


def test_more_sequences_in_a_message_than_are_held_are_refused_and_none_is_left(folder: Path) -> None:
    settings = EngineSettings(sequences=SequenceSettings(maximum=2))
    with Engine(folder / "lstm", settings) as engine:
        controls = [Control(id=name, start=True) for name in (1, 2, 3)]
        with pytest.raises(Exception, match="sequences are running and all have waiting steps"):
            engine.call(Request(model="lstm", inputs={"tokens": np.ones((3, 1), np.int64)}, control=controls))
        with pytest.raises(SequenceNotFoundError):
            engine.call(Request(model="lstm", inputs={"tokens": np.ones((1, 1), np.int64)}, control=Control(id=1)))
        with pytest.raises(InvalidRequestError, match="one of both"):
            Request(model="lstm", inputs={}, control=Control(id=1), new=True)
        assert engine.repository.get("lstm").slots.used == 0
