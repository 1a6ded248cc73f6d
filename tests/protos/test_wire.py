"""The messages are the wire contract's, as tritonclient has it, and ONNX's, as its own package has them."""

from typing import Any

import onnx
import pytest
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as theirs

from cellport.protos import inference_pb2 as ours
from cellport.protos import model_config_pb2 as our_config
from cellport.protos import onnx_tensors_pb2 as our_onnx


def _messages(container: Any) -> dict[str, Any]:
    found = {}
    nested = container.message_types_by_name if hasattr(container, "message_types_by_name") else None
    for message in (nested or container.nested_types_by_name).values():
        found[message.full_name] = message
        found.update(_messages_of(message))
    return found


def _messages_of(message: Any) -> dict[str, Any]:
    found = {}
    for nested in message.nested_types:
        found[nested.full_name] = nested
        found.update(_messages_of(nested))
    return found


def _field(field: Any) -> tuple[Any, ...]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof is not None else None
    return field.number, field.type, field.is_repeated, kind.full_name if kind is not None else None, oneof


def _fields(message: Any) -> dict[str, tuple[Any, ...]]:
    return {field.name: _field(field) for field in message.fields}


THEIRS = {**_messages(theirs.DESCRIPTOR), **_messages(their_config.DESCRIPTOR)}


@pytest.mark.parametrize("name", sorted(_messages(ours.DESCRIPTOR)))
def test_every_message_of_the_service_has_exactly_the_fields_that_tritonclient_knows(name: str) -> None:
    assert _fields(_messages(ours.DESCRIPTOR)[name]) == _fields(THEIRS[name])


@pytest.mark.parametrize("name", sorted(_messages(our_config.DESCRIPTOR)))
def test_every_field_of_the_configuration_is_one_that_tritonclient_knows(name: str) -> None:
    fields = _fields(_messages(our_config.DESCRIPTOR)[name])
    known = _fields(THEIRS[name])
    assert fields == {field: known[field] for field in fields}


def test_data_types_have_tritons_numbers() -> None:
    assert dict(our_config.DataType.items()) == dict(their_config.DataType.items())


def test_every_call_has_the_types_that_tritonclient_sends_and_expects() -> None:
    methods = ours.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    known = theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, method in methods.items():
        for attribute in ("input_type", "output_type"):
            assert getattr(method, attribute).full_name == getattr(known[name], attribute).full_name
        assert (method.client_streaming, method.server_streaming) == (
            known[name].client_streaming,
            known[name].server_streaming,
        )


@pytest.mark.parametrize("name", sorted(_messages(our_onnx.DESCRIPTOR)))
def test_every_field_that_is_read_of_an_onnx_file_is_onnxs(name: str) -> None:
    """Text is read as bytes, so a field's type is compared by its encoding."""
    message = getattr(onnx, name.removeprefix("cellport.onnx.")).DESCRIPTOR
    known = {field.name: field for field in message.fields}
    for field in _messages(our_onnx.DESCRIPTOR)[name].fields:
        assert field.number == known[field.name].number
        assert field.is_repeated == known[field.name].is_repeated
        texts = (field.TYPE_BYTES, field.TYPE_STRING)
        assert (field.type in texts) == (known[field.name].type in texts)
        if field.message_type is not None:
            assert field.message_type.name == known[field.name].message_type.name
