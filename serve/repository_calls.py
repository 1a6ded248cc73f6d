"""The calls that list, load and unload models: the protocol's model repository extension."""

import asyncio
import concurrent.futures
import json
from collections.abc import Callable

from cellport.errors import InvalidRequestError, ModelLoadError, PreconditionError, UnsupportedCallError
from cellport.protos import inference_pb2 as messages

from .calls import CallContext, Lifecycle
from .engine import Engine
from .versions import VersionPolicy, read_policy


class RepositoryCalls:
    """The handlers.

    Args:
        engine: has the models.
        lifecycle: whether calls are taken.
    """

    def __init__(self, engine: Engine, lifecycle: Lifecycle) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        # Loads take place one at a time anyway, and those that wait must not take the loop's own threads.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "cellport-load")

    async def index(
        self, message: messages.RepositoryIndexRequest, _context: CallContext
    ) -> messages.RepositoryIndexResponse:
        """Answer which models there are, and in which state; if `ready` is set, only those that are ready."""
        with self._lifecycle.running():
            _check_repository(message.repository_name)
            response = messages.RepositoryIndexResponse()
            for each in await asyncio.to_thread(self._engine.index):
                if each.state == "READY" or not message.ready:
                    response.models.add(name=each.name, version=each.version, state=each.state, reason=each.reason)
            return response

    async def load(
        self, message: messages.RepositoryModelLoadRequest, _context: CallContext
    ) -> messages.RepositoryModelLoadResponse:
        """Load a model, or load it again; answered when it serves."""
        with self._lifecycle.running():
            self._check_control("load", message.repository_name)
            policy = _read_load(message)
            await self._run(lambda: self._engine.load(message.model_name, policy))
            return messages.RepositoryModelLoadResponse()

    async def unload(
        self, message: messages.RepositoryModelUnloadRequest, _context: CallContext
    ) -> messages.RepositoryModelUnloadResponse:
        """Take no more requests for a model; answered at once, while its running requests finish."""
        with self._lifecycle.running():
            self._check_control("unload", message.repository_name)
            # The one parameter that Triton has here, for models that are made of others; there are none.
            unknown = sorted(set(message.parameters) - {"unload_dependents"})
            if unknown:
                raise InvalidRequestError(f"parameters are {', '.join(unknown)}; accepted: unload_dependents")
            await self._run(lambda: self._engine.unload(message.model_name))
            return messages.RepositoryModelUnloadResponse()

    async def _run(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except ModelLoadError as error:
            raise PreconditionError(str(error)) from error

    def _check_control(self, verb: str, repository: str) -> None:
        _check_repository(repository)
        control = self._engine.settings.repository.control
        if control != "explicit":
            raise UnsupportedCallError(
                f"the server does not {verb} models when it is told, since its model control is {control!r}; accepted: "
                "a server with --model-control explicit"
            )


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequestError(f"repository_name is {name!r}; accepted: none, since there is one repository")


def _read_load(message: messages.RepositoryModelLoadRequest) -> VersionPolicy | None:
    """Read the parameters of a load: of Triton's, a model configuration that has a version policy."""
    unknown = sorted(set(message.parameters) - {"config"})
    if unknown:
        raise InvalidRequestError(
            f"parameters are {', '.join(unknown)}; accepted: config (files are read from the server's folder only)"
        )
    if "config" not in message.parameters:
        return None
    text = message.parameters["config"].string_param
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"config is {text!r:.200}, which is not JSON: {error}") from None
    if not isinstance(config, dict) or set(config) - {"version_policy", "versionPolicy"}:
        raise InvalidRequestError(
            f"config is {text!r:.200}; accepted: an object with version_policy, since the rest is in the file"
        )
    given = [read_policy(each) for each in config.values()]
    return given[0] if given else None
