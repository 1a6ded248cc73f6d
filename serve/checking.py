"""Checking requests: from what is asked to a job that the engine can accept."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np

from cellport.errors import DeadlineExceededError, InvalidRequestError, ServingError

from .generation import TOKENS, Generation
from .jobs import Job, Outcome
from .model import Model
from .repository import Repository
from .requests import Control, Reply, Request
from .sequences import SequenceTable, check_recurrent


class RequestChecker:
    """Makes jobs of requests. Thread-safe.

    Args:
        repository: the models.
        sequences: the running sequences; only what needs no lock is asked of them.
        clock: the clock of deadlines.
        default_priority: of a request that gives none.
    """

    def __init__(
        self, repository: Repository, sequences: SequenceTable, clock: Callable[[], float], default_priority: int
    ) -> None:
        self._repository = repository
        self._sequences = sequences
        self._clock = clock
        self._default_priority = default_priority
        self._names = itertools.count(1)

    def prepare(
        self,
        request: Request,
        done: Callable[[Outcome], None],
        partial: Callable[[Reply], None] | None = None,
    ) -> Job:
        """Check a request, without accepting it.

        Args:
            request: the request.
            done: called once with the reply or the error.
            partial: called with each token of a generation.

        Raises:
            ServingError: the request is wrong.
        """
        controls, model = self._controls(request)
        inputs = request.inputs
        ends_only = not inputs and bool(controls) and all([each.end and not each.start for each in controls])
        bound, generation = None, None
        outputs = request.outputs
        if request.sampling is not None:
            generation = Generation(request.sampling, model.contract)
            if any(name != TOKENS for name in outputs):
                raise InvalidRequestError(f"outputs are {list(outputs)}; accepted of a generation: [{TOKENS!r}]")
            outputs = (generation.scores_output,)
        if not ends_only:
            if request.form is None or generation is not None:
                inputs = {name: np.asarray(value) for name, value in inputs.items()}
                bound = model.contract.bind(inputs, outputs, sequences=len(controls))
            else:
                bound = model.contract.bind(inputs, outputs, sequences=len(controls), form=request.form)
            if generation is not None and (bound.rows != 1 or (bound.lengths is not None and bound.lengths[0] < 1)):
                raise InvalidRequestError(
                    f"the prompt has {bound.rows} rows; accepted of a generation: 1, of at least one token"
                )
        if request.deadline is not None and request.deadline <= self._clock():
            raise deadline_error()
        numbered = not request.going_on and any([each.step is not None for each in controls])
        return Job(
            model=model,
            bound=bound,
            done=done,
            deadline=request.deadline,
            priority=request.priority or self._default_priority,
            pinned=bool(request.version),
            controls=controls,
            new=request.new,
            generation=generation,
            partial=partial,
            digest=_digest(request) if numbered else b"",
            going_on=request.going_on,
        )

    def _controls(self, request: Request) -> tuple[Sequence[Control], Model]:
        """Return a request's places in sequences, and its model: a running sequence stays on its version."""
        controls = request.controls
        if request.new:
            model = self._repository.get(request.model, request.version)
            controls = [Control(id=self.choose_id(model), start=True)]
        else:
            model = self.find(request.model, request.version, controls)
        if controls:
            check_recurrent(model)
            if len(controls) > 1 and not model.arena.uniform:
                raise InvalidRequestError(
                    f"model {model.name!r} has states of no fixed size; accepted: steps of one sequence in a request"
                )
        return controls, model

    def find(self, name: str, version: str, controls: Sequence[Control]) -> Model:
        """Return the model of a request: the one that its sequence runs on, even if another has replaced it since.

        Args:
            name: the model's name.
            version: the version that was asked for; empty for none.
            controls: the request's places in sequences.

        Raises:
            ServingError: there is none of that name and version, or none that serves.
        """
        if not controls or controls[0].start:
            return self._repository.get(name, version)
        found = self._sequences.next_model_of(name, controls[0].id)
        if found is not None and version in ("", found.version):
            return found
        try:
            return self._repository.get(name, version)
        except ServingError:
            # Why the sequence is gone says more than that the model is.
            self._sequences.check_past(name, controls[0].id)
            raise

    def choose_id(self, model: Model) -> str:
        """Return an id for a new sequence that no other one has."""
        return next(
            name for number in self._names for name in [f"engine-{number}"] if not self._sequences.holds(model, name)
        )


def _digest(request: Request) -> bytes:
    """Return what tells a request that is sent again from another one."""
    found = hashlib.blake2b(repr((list(request.outputs), [*request.controls])).encode(), digest_size=16)
    for name in sorted(request.inputs):
        array = np.asarray(request.inputs[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).data)
    return found.digest()


def wait_of(seconds: float) -> float:
    """Return a time as one that can be waited for: at least 0, and at most what the platform takes."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


def deadline_error() -> DeadlineExceededError:
    """Return the error of a request whose time was up before it ran."""
    return DeadlineExceededError("the deadline passed before the request ran")
