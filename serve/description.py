"""The calls that describe the server and its models."""

from cellport import __version__
from cellport.errors import UnavailableError
from cellport.manifest import BATCH, Axes
from cellport.protos import inference_pb2 as messages
from cellport.protos import model_config_pb2 as config

from .calls import CallContext, Lifecycle
from .codec import datatype_of
from .engine import Engine
from .exchange import STATES_METADATA
from .layouts import batch_first
from .model import Model
from .scheduler import PATIENCE

EXTENSIONS = ("sequence", "schedule_policy", "model_configuration", "model_repository", "statistics")
_PLATFORM = "onnxruntime_onnx"
_LARGEST_INT32 = 2**31 - 1
_LARGEST_UINT64 = 2**64 - 1


class DescriptionCalls:
    """The handlers.

    Args:
        engine: has the models.
        lifecycle: whether calls are taken.
    """

    def __init__(self, engine: Engine, lifecycle: Lifecycle) -> None:
        self._engine = engine
        self._repository = engine.repository
        self._lifecycle = lifecycle

    async def live(self, _message: messages.ServerLiveRequest, _context: CallContext) -> messages.ServerLiveResponse:
        """Answer that the server runs; it does until it has shut down."""
        return messages.ServerLiveResponse(live=True)

    async def ready(self, _message: messages.ServerReadyRequest, _context: CallContext) -> messages.ServerReadyResponse:
        """Answer whether the server takes requests."""
        return messages.ServerReadyResponse(ready=self._lifecycle.ready)

    async def model_ready(
        self, message: messages.ModelReadyRequest, _context: CallContext
    ) -> messages.ModelReadyResponse:
        """Answer whether a model takes requests."""
        try:
            self._repository.get(message.name, message.version)
        except UnavailableError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=self._lifecycle.ready)

    async def server_metadata(
        self, _message: messages.ServerMetadataRequest, _context: CallContext
    ) -> messages.ServerMetadataResponse:
        """Answer what the server is."""
        with self._lifecycle.running():
            return messages.ServerMetadataResponse(name="cellport", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(
        self, message: messages.ModelMetadataRequest, context: CallContext
    ) -> messages.ModelMetadataResponse:
        """Answer what a model takes and returns, with its states if the call's metadata asks for them."""
        with self._lifecycle.running():
            model = self._repository.get(message.name, message.version)
            states = str(context.metadata.get(STATES_METADATA, "0")).lower() not in ("0", "false", "")
            return describe(model, self._repository.versions(model.name), states=states)

    async def model_config(
        self, message: messages.ModelConfigRequest, _context: CallContext
    ) -> messages.ModelConfigResponse:
        """Answer a model's configuration in Triton's terms."""
        with self._lifecycle.running():
            return messages.ModelConfigResponse(
                config=self._configure(self._repository.get(message.name, message.version))
            )

    def _configure(self, model: Model) -> config.ModelConfig:
        manifest = model.manifest
        settings = self._engine.settings
        batched = model.contract.splits and all(BATCH in each.axes for each in manifest.inputs)
        result = config.ModelConfig(
            name=model.name,
            platform=_PLATFORM,
            backend="onnxruntime",
            max_batch_size=min(settings.batch.rows, _LARGEST_INT32) if batched else 0,
        )
        policy = self._engine.policy(model.name)
        if policy.latest is not None:
            result.version_policy.latest.num_versions = min(policy.latest, _LARGEST_INT32)
        elif policy.specific:
            result.version_policy.specific.versions.extend(map(int, policy.specific))
        else:
            result.version_policy.all.SetInParent()

        def dims(axes: Axes) -> list[int]:
            # With a batch size above 0, Triton's configuration leaves the batch axis out.
            return shape(axes)[1:] if batched else shape(axes)

        for each in manifest.inputs:
            result.input.add(
                name=each.name,
                data_type=_data_type(each.dtype),
                dims=dims(each.axes),
                optional=each.optional or each.role in ("lengths", "sizes"),
            )
        for output in manifest.outputs:
            result.output.add(name=output.name, data_type=_data_type(output.dtype), dims=dims(output.axes))
        delay = int(PATIENCE * 1e6)
        if not model.contract.recurrent:
            if model.contract.splits or model.contract.unites:
                result.dynamic_batching.max_queue_delay_microseconds = delay
                # Triton's figures for priorities: any number is one, and what a request has that gives none.
                result.dynamic_batching.priority_levels = _LARGEST_UINT64
                result.dynamic_batching.default_priority_level = settings.batch.default_priority
            return result
        sequences = result.sequence_batching
        sequences.oldest.max_candidate_sequences = min(settings.sequences.maximum, _LARGEST_INT32)
        sequences.oldest.max_queue_delay_microseconds = delay
        sequences.max_sequence_idle_microseconds = int(min(settings.sequences.idle_seconds * 1e6, _LARGEST_UINT64))
        for state in manifest.states:
            sequences.state.add(
                input_name=state.input,
                output_name=state.output,
                data_type=_data_type(state.dtype),
                dims=shape(state.axes)[1:],
            )
        return result


def shape(axes: Axes) -> list[int]:
    """Return the batch-first shape that the wire gives for `axes`, with -1 for a dynamic one."""
    return [axis if isinstance(axis, int) else -1 for axis in batch_first(axes)]


def describe(model: Model, versions: list[str], *, states: bool) -> messages.ModelMetadataResponse:
    """Return what a model takes and returns.

    Args:
        model: the model.
        versions: all versions of its name.
        states: list the states too.
    """
    manifest = model.manifest
    response = messages.ModelMetadataResponse(name=model.name, versions=versions, platform=_PLATFORM)
    for each in manifest.inputs:
        response.inputs.add(name=each.name, datatype=datatype_of(each.dtype), shape=shape(each.axes))
    for output in manifest.outputs:
        response.outputs.add(name=output.name, datatype=datatype_of(output.dtype), shape=shape(output.axes))
    if states:
        for state in manifest.states:
            response.inputs.add(name=state.input, datatype=datatype_of(state.dtype), shape=shape(state.axes))
            response.outputs.add(name=state.output, datatype=datatype_of(state.dtype), shape=shape(state.axes))
    return response


def _data_type(dtype: str) -> config.DataType:
    datatype = datatype_of(dtype)
    value: config.DataType = getattr(config, "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")
    return value
