from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunStatisticsRequest(_message.Message):
    __slots__ = ("model_name", "model_version")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class ChunkStatistics(_message.Message):
    __slots__ = ("steps", "runs")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    runs: int
    def __init__(self, steps: _Optional[int] = ..., runs: _Optional[int] = ...) -> None: ...

class ModelRunStatistics(_message.Message):
    __slots__ = ("model_name", "model_version", "runs", "lanes", "steps", "padding_steps", "chunks", "sequences", "state_bytes")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PADDING_STEPS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    runs: int
    lanes: int
    steps: int
    padding_steps: int
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkStatistics]
    sequences: int
    state_bytes: int
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., runs: _Optional[int] = ..., lanes: _Optional[int] = ..., steps: _Optional[int] = ..., padding_steps: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[ChunkStatistics, _Mapping[str, object]]]] = ..., sequences: _Optional[int] = ..., state_bytes: _Optional[int] = ...) -> None: ...

class RunStatisticsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelRunStatistics]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelRunStatistics, _Mapping[str, object]]]] = ...) -> None: ...
