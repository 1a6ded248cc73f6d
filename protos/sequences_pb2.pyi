from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SequenceReference(_message.Message):
    __slots__ = ("model_name", "number", "text")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    number: int
    text: str
    def __init__(self, model_name: _Optional[str] = ..., number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: SequenceReference
    def __init__(self, sequence: _Optional[_Union[SequenceReference, _Mapping[str, object]]] = ...) -> None: ...

class StateTensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "raw_contents")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    RAW_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    raw_contents: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., raw_contents: _Optional[bytes] = ...) -> None: ...

class SequenceState(_message.Message):
    __slots__ = ("model_name", "model_version", "states", "step")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    states: _containers.RepeatedCompositeFieldContainer[StateTensor]
    step: int
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., states: _Optional[_Iterable[_Union[StateTensor, _Mapping[str, object]]]] = ..., step: _Optional[int] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("state", "sequence")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    state: SequenceState
    sequence: SequenceReference
    def __init__(self, state: _Optional[_Union[SequenceState, _Mapping[str, object]]] = ..., sequence: _Optional[_Union[SequenceReference, _Mapping[str, object]]] = ...) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("sequence", "into")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INTO_FIELD_NUMBER: _ClassVar[int]
    sequence: SequenceReference
    into: SequenceReference
    def __init__(self, sequence: _Optional[_Union[SequenceReference, _Mapping[str, object]]] = ..., into: _Optional[_Union[SequenceReference, _Mapping[str, object]]] = ...) -> None: ...
