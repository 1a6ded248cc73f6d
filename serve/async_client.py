"""A client of the protocol for an event loop: NumPy in, NumPy out."""

import contextlib
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from cellport.errors import NotFoundError, PreconditionError
from cellport.protos import inference_pb2 as messages
from cellport.protos import sequences_pb2 as sequences

from . import exchange
from .client import channel_options
from .codec import Array
from .exchange import (
    END_SECONDS,
    MAXIMUM_BYTES,
    SERVICE,
    STATES_SERVICE,
    ModelInfo,
    ServerInfo,
    Snapshot,
    StreamAnswer,
    Usage,
)
from .requests import Control, SequenceId
from .status import error_of

_Requests = Iterable[Mapping[str, ArrayLike]] | AsyncIterable[Mapping[str, ArrayLike]]


class AsyncClient:
    """A connection to a server of the Open Inference Protocol; an async context manager.

    The methods are those of `cellport.serve.client.Client`, awaited. Made on the event loop that uses it.

    Args:
        url: host and port.
        timeout: seconds that each call may take; None for no limit.
        maximum_bytes: largest message that is sent or taken.
    """

    def __init__(self, url: str, *, timeout: float | None = None, maximum_bytes: int = MAXIMUM_BYTES) -> None:
        self._timeout = timeout
        self._channel = grpc.aio.insecure_channel(url, options=channel_options(maximum_bytes))
        self._calls: dict[str, Callable[..., Any]] = {}

    async def live(self) -> bool:
        """Return whether the server runs; see `Client.live`."""
        response = await self._call("ServerLive", messages.ServerLiveRequest(), messages.ServerLiveResponse)
        return bool(response.live)

    async def ready(self, model: str | None = None, *, version: str = "") -> bool:
        """Return whether the server, or a model, takes requests; see `Client.ready`."""
        if model is None:
            response = await self._call("ServerReady", messages.ServerReadyRequest(), messages.ServerReadyResponse)
        else:
            request = messages.ModelReadyRequest(name=model, version=version)
            response = await self._call("ModelReady", request, messages.ModelReadyResponse)
        return bool(response.ready)

    async def server(self) -> ServerInfo:
        """Return what the server says of itself."""
        request = messages.ServerMetadataRequest()
        return exchange.read_server(await self._call("ServerMetadata", request, messages.ServerMetadataResponse))

    async def metadata(self, model: str, *, version: str = "", states: bool = False) -> ModelInfo:
        """Return what a model takes and returns; see `Client.metadata`."""
        request = messages.ModelMetadataRequest(name=model, version=version)
        metadata = ((exchange.STATES_METADATA, "1"),) if states else ()
        response = await self._call("ModelMetadata", request, messages.ModelMetadataResponse, metadata=metadata)
        return exchange.read_model(response)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        version: str = "",
        timeout: float | None = None,
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model on one request and return its outputs; see `Client.infer`."""
        message = exchange.write_request(model, inputs, outputs, version=version, priority=priority)
        return await self.send(message, timeout)

    async def send(self, message: messages.ModelInferRequest, timeout: float | None = None) -> dict[str, Array]:
        """Send one message and return the arrays of its response."""
        response = await self._call("ModelInfer", message, messages.ModelInferResponse, timeout=timeout)
        return exchange.read_reply(response)

    def sequence(self, model: str, id: SequenceId | None = None, *, version: str = "") -> "AsyncClientSequence":
        """Return a sequence, to be used as an async context manager that ends it; see `Client.sequence`."""
        return AsyncClientSequence(self, model, uuid.uuid4().hex if id is None else id, version)

    async def stream(
        self,
        model: str,
        requests: _Requests,
        outputs: Sequence[str] | None = None,
        *,
        version: str = "",
        sequence: SequenceId | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[StreamAnswer]:
        """Send requests over one stream, and yield their answers as they come; see `Client.stream`."""
        call = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )
        usage = Usage()
        sent = _steps(model, requests, outputs, version, sequence, usage)
        responses = call(sent, timeout=timeout or self._timeout)
        try:
            async for response in responses:
                if not usage.see(response):
                    yield exchange.read_stream_answer(response)
        except grpc.aio.AioRpcError as error:
            raise error_of(error.code().name, error.details() or "") from None
        finally:
            responses.cancel()
            if sequence is not None and usage.started and not usage.ended:
                with contextlib.suppress(Exception):  # as in `Client.stream`
                    seconds = END_SECONDS if self._timeout is None else min(self._timeout, END_SECONDS)
                    await self.send(exchange.write_end(model, sequence, version), seconds)

    async def export_state(self, model: str, sequence: SequenceId) -> Snapshot:
        """Return the state of a running sequence; see `Client.export_state`."""
        request = sequences.ExportRequest(sequence=exchange.write_reference(model, sequence))
        return exchange.read_snapshot(await self._call("Export", request, sequences.SequenceState, STATES_SERVICE))

    async def import_state(self, snapshot: Snapshot, sequence: SequenceId | None = None) -> SequenceId:
        """Start a sequence from a state and return its id; see `Client.import_state`."""
        into = exchange.write_reference(snapshot.model, sequence)
        request = sequences.ImportRequest(state=exchange.write_snapshot(snapshot), sequence=into)
        return await self._reference("Import", request)

    async def fork(self, model: str, sequence: SequenceId, into: SequenceId | None = None) -> SequenceId:
        """Start a sequence from the state that another one has and return its id; see `Client.fork`."""
        request = sequences.ForkRequest(
            sequence=exchange.write_reference(model, sequence), into=exchange.write_reference(model, into)
        )
        return await self._reference("Fork", request)

    async def _reference(self, method: str, request: Any) -> SequenceId:
        response = await self._call(method, request, sequences.SequenceReference, STATES_SERVICE)
        found = exchange.read_reference(response)
        assert found is not None
        return found

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _call(
        self,
        method: str,
        request: Any,
        response: Any,
        service: str = SERVICE,
        *,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Any:
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
        try:
            return await call(request, timeout=self._timeout if timeout is None else timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of(error.code().name, error.details() or "") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def _steps(
    model: str,
    requests: _Requests,
    outputs: Sequence[str] | None,
    version: str,
    sequence: SequenceId | None,
    usage: Usage,
) -> AsyncIterator[messages.ModelInferRequest]:
    index = 0
    async for inputs in _each(requests):
        message = exchange.write_step(model, inputs, outputs, version=version, index=index, sequence=sequence)
        usage.started = True
        yield message
        index += 1
    if sequence is not None and usage.started:
        yield exchange.write_end(model, sequence, version)


async def _each(requests: _Requests) -> AsyncIterator[Mapping[str, ArrayLike]]:
    if isinstance(requests, AsyncIterable):
        async for each in requests:
            yield each
    else:
        for each in requests:
            yield each


class AsyncClientSequence:
    """One sequence of a server; see `cellport.serve.client.ClientSequence`.

    Attributes:
        id: its id.
    """

    def __init__(self, client: AsyncClient, model: str, id: SequenceId, version: str) -> None:
        self.id = id
        self._client = client
        self._model = model
        self._version = version
        self._running = False
        self._unsure = False  # a start was not answered, and may have been done

    async def step(
        self,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        end: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Advance by the steps in `inputs` and return the outputs; see `ClientSequence.step`."""
        control = Control(id=self.id, start=not self._running, end=end)
        message = exchange.write_request(self._model, inputs, outputs, version=self._version, control=control)
        try:
            answer = await self._client.send(message, timeout)
        except BaseException as error:
            self._unsure |= control.start and exchange.may_have_run(error)
            raise
        self._running, self._unsure = not end, False
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not (self._running or self._unsure):
            return
        self._running = self._unsure = False
        try:
            await self._client.send(exchange.write_end(self._model, self.id, self._version))
        except Exception as failure:
            # An evicted sequence is gone already, and an error in the body must not be hidden.
            if kind is None and not isinstance(failure, NotFoundError | PreconditionError):
                raise
