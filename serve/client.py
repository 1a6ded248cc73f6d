"""A client of the protocol for threads: NumPy in, NumPy out. For an event loop see `cellport.serve.async_client`."""

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from cellport.errors import NotFoundError, PreconditionError
from cellport.protos import inference_pb2 as messages
from cellport.protos import sequences_pb2 as sequences

from . import exchange
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


def channel_options(maximum_bytes: int) -> list[tuple[str, int]]:
    """Return the options of a channel with a limit on messages."""
    return [("grpc.max_send_message_length", maximum_bytes), ("grpc.max_receive_message_length", maximum_bytes)]


def _steps(
    model: str,
    requests: Iterable[Mapping[str, ArrayLike]],
    outputs: Sequence[str] | None,
    version: str,
    sequence: SequenceId | None,
    usage: Usage,
) -> Iterator[messages.ModelInferRequest]:
    for index, inputs in enumerate(requests):
        message = exchange.write_step(model, inputs, outputs, version=version, index=index, sequence=sequence)
        usage.started = True
        yield message
    if sequence is not None and usage.started:
        yield exchange.write_end(model, sequence, version)


class Client:
    """A connection to a server of the Open Inference Protocol. Thread-safe, and a context manager.

    Args:
        url: host and port.
        timeout: seconds that each call may take; None for no limit.
        maximum_bytes: largest message that is sent or taken.
    """

    def __init__(self, url: str, *, timeout: float | None = None, maximum_bytes: int = MAXIMUM_BYTES) -> None:
        self._timeout = timeout
        self._channel = grpc.insecure_channel(url, options=channel_options(maximum_bytes))
        self._calls: dict[str, Callable[..., Any]] = {}

    def live(self) -> bool:
        """Return whether the server runs.

        Raises:
            ServingError: it cannot be reached.
        """
        return bool(self._call("ServerLive", messages.ServerLiveRequest(), messages.ServerLiveResponse).live)

    def ready(self, model: str | None = None, *, version: str = "") -> bool:
        """Return whether the server, or a model, takes requests.

        Raises:
            NotFoundError: there is no such model.
            ServingError: the server cannot be reached.
        """
        if model is None:
            return bool(self._call("ServerReady", messages.ServerReadyRequest(), messages.ServerReadyResponse).ready)
        request = messages.ModelReadyRequest(name=model, version=version)
        return bool(self._call("ModelReady", request, messages.ModelReadyResponse).ready)

    def server(self) -> ServerInfo:
        """Return what the server says of itself."""
        response = self._call("ServerMetadata", messages.ServerMetadataRequest(), messages.ServerMetadataResponse)
        return exchange.read_server(response)

    def metadata(self, model: str, *, version: str = "", states: bool = False) -> ModelInfo:
        """Return what a model takes and returns.

        Args:
            model: the model's name.
            version: its version; empty for the newest.
            states: list the states too.

        Raises:
            NotFoundError: there is no such model.
        """
        request = messages.ModelMetadataRequest(name=model, version=version)
        metadata = ((exchange.STATES_METADATA, "1"),) if states else ()
        return exchange.read_model(
            self._call("ModelMetadata", request, messages.ModelMetadataResponse, metadata=metadata)
        )

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        version: str = "",
        timeout: float | None = None,
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model on one request and return its outputs.

        Args:
            model: the model's name.
            inputs: batch-first arrays by input name; states may be given by their input names.
            outputs: names of the outputs wanted, states among them; none for every output that is not a state.
            version: the model's version; empty for the newest.
            timeout: seconds that the call may take, instead of the client's.
            priority: a smaller number runs first; 0 for the server's default.

        Returns:
            Batch-first, read-only arrays by output name.

        Raises:
            ServingError: one of its subclasses says why there is no answer; its `status` is the gRPC status.
        """
        message = exchange.write_request(model, inputs, outputs, version=version, priority=priority)
        return self.send(message, timeout)

    def send(self, message: messages.ModelInferRequest, timeout: float | None = None) -> dict[str, Array]:
        """Send one message and return the arrays of its response."""
        return exchange.read_reply(self._call("ModelInfer", message, messages.ModelInferResponse, timeout=timeout))

    def sequence(self, model: str, id: SequenceId | None = None, *, version: str = "") -> "ClientSequence":
        """Return a sequence, to be used as a context manager that ends it.

        Args:
            model: the model's name.
            id: the sequence's id; None for one that no other client has.
            version: the model's version; empty for the newest.
        """
        return ClientSequence(self, model, uuid.uuid4().hex if id is None else id, version)

    def stream(
        self,
        model: str,
        requests: Iterable[Mapping[str, ArrayLike]],
        outputs: Sequence[str] | None = None,
        *,
        version: str = "",
        sequence: SequenceId | None = None,
        timeout: float | None = None,
    ) -> Iterator[StreamAnswer]:
        """Send requests over one stream, and yield their answers as they come.

        Args:
            model: the model's name.
            requests: the inputs of each request; taken from another thread, as fast as the stream takes them.
            outputs: as in `infer`.
            version: the model's version; empty for the newest.
            sequence: id of the sequence whose steps the requests are; it ends with the stream, also with one that is
                left early or breaks, and its answers come in order. None for requests on their own.
            timeout: seconds that the whole stream may take.

        Raises:
            ServingError: the stream broke. The error of one request is in its answer.
        """
        call = self._channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )
        usage = Usage()
        sent = _steps(model, requests, outputs, version, sequence, usage)
        responses = call(sent, timeout=timeout or self._timeout)
        try:
            for response in responses:
                if not usage.see(response):
                    yield exchange.read_stream_answer(response)
        except grpc.RpcError as error:
            raise error_of(error.code().name, error.details() or "") from None
        finally:
            responses.cancel()
            if sequence is not None and usage.started and not usage.ended:
                # Nobody is left who could do something about a failure; the server has its idle limit for that.
                with contextlib.suppress(Exception):
                    seconds = END_SECONDS if self._timeout is None else min(self._timeout, END_SECONDS)
                    self.send(exchange.write_end(model, sequence, version), seconds)

    def export_state(self, model: str, sequence: SequenceId) -> Snapshot:
        """Return the state of a running sequence after the last step that is done.

        Raises:
            NotFoundError: it is not running.
        """
        request = sequences.ExportRequest(sequence=exchange.write_reference(model, sequence))
        return exchange.read_snapshot(self._call("Export", request, sequences.SequenceState, STATES_SERVICE))

    def import_state(self, snapshot: Snapshot, sequence: SequenceId | None = None) -> SequenceId:
        """Start a sequence from a state, on this server or another; return its id.

        Args:
            snapshot: the state; with an empty version, the newest takes it.
            sequence: the sequence's id; None to let the server choose one.

        Raises:
            InvalidRequestError: the state does not fit the model.
        """
        into = exchange.write_reference(snapshot.model, sequence)
        request = sequences.ImportRequest(state=exchange.write_snapshot(snapshot), sequence=into)
        return self._reference("Import", request)

    def fork(self, model: str, sequence: SequenceId, into: SequenceId | None = None) -> SequenceId:
        """Start a sequence from the state that another one has; return its id.

        Args:
            model: the model's name.
            sequence: the running sequence.
            into: the new one's id; None to let the server choose one.

        Raises:
            NotFoundError: the sequence is not running.
        """
        request = sequences.ForkRequest(
            sequence=exchange.write_reference(model, sequence), into=exchange.write_reference(model, into)
        )
        return self._reference("Fork", request)

    def _reference(self, method: str, request: Any) -> SequenceId:
        found = exchange.read_reference(self._call(method, request, sequences.SequenceReference, STATES_SERVICE))
        assert found is not None
        return found

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(
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
            return call(request, timeout=self._timeout if timeout is None else timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise error_of(error.code().name, error.details() or "") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ClientSequence:
    """One sequence of a server; the first step starts it, and leaving its context ends it.

    Attributes:
        id: its id.
    """

    def __init__(self, client: Client, model: str, id: SequenceId, version: str) -> None:
        self.id = id
        self._client = client
        self._model = model
        self._version = version
        self._running = False
        self._unsure = False  # a start was not answered, and may have been done

    def step(
        self,
        inputs: Mapping[str, ArrayLike],
        outputs: Sequence[str] | None = None,
        *,
        end: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Advance by the steps in `inputs` and return the outputs.

        Args:
            inputs: arrays `[1, time, …]` by input name, or `[1, …]` for one step; the first step may give states.
            outputs: as in `Client.infer`.
            end: the sequence ends with this step.
            timeout: seconds that the call may take.

        Raises:
            ServingError: the step was not answered; unless the time was up, the state is what it was.
        """
        control = Control(id=self.id, start=not self._running, end=end)
        message = exchange.write_request(self._model, inputs, outputs, version=self._version, control=control)
        try:
            answer = self._client.send(message, timeout)
        except BaseException as error:
            self._unsure |= control.start and exchange.may_have_run(error)
            raise
        self._running, self._unsure = not end, False
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not (self._running or self._unsure):
            return
        self._running = self._unsure = False
        try:
            self._client.send(exchange.write_end(self._model, self.id, self._version))
        except Exception as failure:
            # An evicted sequence is gone already, and an error in the body must not be hidden.
            if kind is None and not isinstance(failure, NotFoundError | PreconditionError):
                raise
