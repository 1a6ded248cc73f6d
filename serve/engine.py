"""The engine: requests in, answers out, model runs on threads of their own.

`Engine` is for threads, `cellport.serve.async_engine.AsyncEngine` for an event loop; the gRPC server is one caller of
the latter. What to run next is the scheduler's decision; this module only carries it out.
"""

import concurrent.futures
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cellport.errors import (
    ModelLoadError,
    RequestCancelledError,
    SequenceExistsError,
    ServingError,
    UnavailableError,
)

from .checking import RequestChecker, deadline_error, wait_of
from .codec import Array
from .generation import TOKENS, Sampling
from .instances import choose_threads, choose_workers, cores
from .jobs import Completion, Job, Outcome, Place
from .loading import Loader
from .model import Model
from .repository import ModelFile, ModelStatus, Repository
from .requests import Control, Reply, Request, SequenceId
from .runner import Runner, deliver
from .scheduler import Scheduler
from .sequences import Answer, Lane, SequenceTable
from .settings import EngineSettings
from .statistics import ModelStatistics
from .versions import VersionPolicy
from .warming import warm

if TYPE_CHECKING:
    from .engine_sequence import EngineSequence


class Ticket:
    """An accepted request that can still be cancelled."""

    def __init__(self, engine: "Engine", job: Job) -> None:
        self._engine = engine
        self._job = job

    def cancel(self, error: Exception) -> bool:
        """Drop the request with `error` unless the last of it runs already; return whether it ends so."""
        return self._engine.cancel(self._job, error)


class Engine:
    """Runs models for many callers at once.

    Thread-safe, and a context manager; on exit, requests that wait are refused and running ones finish.

    Args:
        models: a path (see `cellport.serve.repository.find_files`), or loaded models.
        settings: how it works.
        clock: the clock that deadlines and idle limits are measured by, in seconds.

    Attributes:
        repository: the models.
        workers: how many runs there may be at a time.
        runner: carries them out.
        prepare: checks a request, without accepting it; see `RequestChecker.prepare`.
        find: returns the model of a request; see `RequestChecker.find`.

    Raises:
        ModelLoadError: a model cannot be loaded.
    """

    def __init__(
        self,
        models: str | Path | Iterable[Model],
        settings: EngineSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.clock = clock
        self._loader: Loader | None = None
        if isinstance(models, str | Path):
            self.repository = Repository()
            self._loader = Loader(
                Path(models), self.repository, self.settings.repository, load=self._load, ended=self._end_sequences
            )
            self._loader.start()
        else:
            self.repository = Repository(map(self._warm, models))
        self._sequences = SequenceTable(self.settings.sequences)
        self._scheduler = Scheduler(self.settings.batch, self._sequences, self.settings.inline_seconds)
        default = self.settings.batch.default_priority
        self._checker = RequestChecker(self.repository, self._sequences, clock, default)
        self.prepare = self._checker.prepare
        self.find = self._checker.find
        self.workers = self.settings.workers or self._choose_workers()
        self.runner = Runner(self._scheduler, self._sequences, clock, self.workers)
        self._changed = self.runner.changed
        if self._loader is not None:
            self._loader.watch()

    def _load(self, file: ModelFile) -> Model:
        settings = self.settings.session

        def load(threads: int | None) -> Model:
            chosen = replace(settings, threads=threads)
            return self._warm(Model.load(file.path, name=file.name, version=file.version, settings=chosen))

        if settings.threads is not None or not self.settings.warm_seconds:
            return load(settings.threads)
        return choose_threads(load, cores())

    def _choose_workers(self) -> int:
        if not self.settings.warm_seconds:
            return cores()
        return choose_workers(list(self.repository), cores())

    def _warm(self, model: Model) -> Model:
        if self.settings.warm_seconds:
            warm(model, self.settings.warm_seconds)
        return model

    def load(self, name: str, policy: VersionPolicy | None = None) -> None:
        """Load a model from its folder, or load it again; return when it serves. What fails to load replaces nothing.

        Running requests finish on the model that they began with, and sequences stay on theirs.

        Args:
            name: the model's name.
            policy: which versions of it, until it is loaded again; None for the settings' policy.

        Raises:
            ModelNotFoundError: there is none of that name.
            ModelLoadError: a version cannot be loaded, or the engine was not made from a path.
        """
        self._folder().load(name, policy)

    def unload(self, name: str) -> None:
        """Take no more requests for a model. Those that were accepted finish, and its sequences end.

        Raises:
            ModelNotFoundError: there is none of that name.
            ModelLoadError: the engine was not made from a path.
        """
        self._folder().unload(name)

    def index(self) -> list[ModelStatus]:
        """Return what is known of each version of each model: those that serve, and why others do not."""
        return self.repository.index() if self._loader is None else self._loader.index()

    def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """Return what models have done since they were loaded.

        Args:
            model: a model's name; empty for all that are served.
            version: its version; empty for all that are served.

        Raises:
            ServingError: there is none of that name and version, or none that serves.
        """
        models = [each for each in self.repository if model in ("", each.name)]
        if model and (version or not models):
            models = [self.repository.get(model, version)]
        with self._changed:
            sequences = self._sequences.count()
        return [
            each.statistics.read(
                each.name,
                each.version,
                sequences=sequences[each],
                state_bytes=each.arena.bytes_of(each.slots.used),
            )
            for each in models
        ]

    def policy(self, name: str) -> VersionPolicy:
        """Return which versions of a model are served."""
        return VersionPolicy() if self._loader is None else self._loader.policy(name)

    def _folder(self) -> Loader:
        if self._loader is None:
            raise ModelLoadError("the engine was made from loaded models; accepted: one made from a path")
        return self._loader

    def _end_sequences(self, name: str) -> None:
        with self._changed:
            self._sequences.end_all(name, "was ended when the model was unloaded")

    @property
    def runs(self) -> int:
        """How many runs have begun."""
        return self.runner.runs

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs. Needs no lock: it may be another one's at once."""
        return self._scheduler.running > 0 or self._scheduler.waiting > 0

    @property
    def waiting(self) -> int:
        """Requests that have been accepted and have not begun to run."""
        with self._changed:
            return self._scheduler.waiting

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        deadline: float | None = None,
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model on one request and return its outputs.

        Args:
            model: the model's name.
            inputs: batch-first arrays by input name. States may be given by their input names; rows whose state is not
                given start at its initial value.
            outputs: names of the outputs wanted, states among them; none for every output that is not a state.
            version: the model's version; empty for the newest.
            deadline: moment on the engine's clock (`time.monotonic`) after which the answer is of no use; None or
                infinity for never.
            priority: a smaller number runs first; 0 for the engine's default.

        Returns:
            Batch-first arrays by output name.

        Raises:
            ServingError: one of its subclasses says why there is no answer.
        """
        request = Request(
            model=model,
            inputs=inputs,
            outputs=tuple(outputs or ()),
            version=version,
            deadline=deadline,
            priority=priority,
        )
        return dict(self.call(request).outputs)

    def generate(
        self,
        model: str,
        inputs: Mapping[str, Array],
        sampling: Sampling,
        *,
        version: str = "",
        deadline: float | None = None,
        priority: int = 0,
    ) -> Iterator[int]:
        """Generate tokens, and yield each as soon as it is drawn; leaving the iteration ends the generation.

        Args:
            model: the model's name.
            inputs: the prompt `[1, time]` under the name of the model's token input, and what else the model takes.
            sampling: how tokens are drawn, and when enough of them are.
            version: as in `infer`.
            deadline: as in `infer`.
            priority: as in `infer`.

        Raises:
            ServingError: one of its subclasses says why there are no more tokens.
        """
        request = Request(
            model=model, inputs=inputs, sampling=sampling, version=version, deadline=deadline, priority=priority
        )
        news: queue.SimpleQueue[tuple[bool, Outcome]] = queue.SimpleQueue()
        job = self.prepare(request, lambda outcome: news.put((True, outcome)), lambda reply: news.put((False, reply)))
        for _, error in self.accept([job]):
            raise error
        return self._tokens(job, news, deadline)

    def _tokens(
        self, job: Job, news: "queue.SimpleQueue[tuple[bool, Outcome]]", deadline: float | None
    ) -> Iterator[int]:
        try:
            while True:
                try:
                    last, outcome = news.get(timeout=None if deadline is None else wait_of(deadline - self.clock()))
                except queue.Empty:
                    deadline = None
                    self.cancel(job, deadline_error())
                    continue
                if isinstance(outcome, Exception):
                    raise outcome
                if last:
                    return
                yield int(outcome.outputs[TOKENS][0, 0])
        finally:
            self.cancel(job, RequestCancelledError("the generation was left"))

    def call(self, request: Request) -> Reply:
        """Run one request and wait for its reply.

        Raises:
            ServingError: one of its subclasses says why there is no answer.
        """
        future: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        job = self.prepare(request, future.set_result)
        for _, error in self.accept([job], self.runner.run_here):
            raise error
        try:
            outcome = future.result(None if request.deadline is None else wait_of(request.deadline - self.clock()))
        except concurrent.futures.TimeoutError:
            # What runs its last chunk is waited for: its sequence advances, and the caller should know.
            self.cancel(job, deadline_error())
            outcome = future.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def submit(self, request: Request, done: Callable[[Outcome], None]) -> Ticket:
        """Accept a request and return at once.

        Args:
            request: the request.
            done: called once with the reply or the error, on another thread or within this call; it is to return
                soon, since other requests may wait for that thread.

        Raises:
            ServingError: the request is refused; `done` is not called.
        """
        job = self.prepare(request, done)
        for _, error in self.accept([job]):
            raise error
        return Ticket(self, job)

    def accept(
        self, jobs: Sequence[Job], here: Callable[[], object] | None = None, *, single: bool = False
    ) -> list[tuple[Job, ServingError]]:
        """Accept prepared requests, all at once.

        Args:
            jobs: in the order in which they came.
            here: runs what is waiting on this thread, called instead of a worker if the engine is idle.
            single: brief runs of their models are to take place one at a time, until requests come without this.

        Returns:
            Those that are refused, and why; their `done` is not called.
        """
        completions: list[Completion] = []
        refused = []
        now, arrived = self.clock(), time.perf_counter()
        with self._changed:
            idle = not self._scheduler.running and not self._scheduler.waiting
            self._sequences.evict_idle(now)
            for job in jobs:
                if job.phase != "new":  # cancelled meanwhile
                    continue
                job.arrived = arrived
                try:
                    completions += self._admit(job, now)
                    job.model.single = single and self._is_brief(job)
                except ServingError as error:
                    job.model.statistics.settle(job, failed=True)
                    job.finish()
                    refused.append((job, error))
            inline = here is not None and idle and self._scheduler.waiting > 0
            if not inline and self.runner.can_run() and not (self.runner.holding and self._scheduler.patience(now)):
                self._changed.notify()
        deliver(completions)
        if inline and here is not None:
            here()
        return refused

    def _admit(self, job: Job, now: float) -> list[Completion]:
        if self.runner.closed:
            raise UnavailableError("the engine is closed")
        # Before a start makes room in the table, at the cost of another sequence.
        self._scheduler.check_room(job.size)
        controls = job.controls
        if job.going_on and job.bound is not None and not job.bound.states:
            lanes = self._sequences.ready_lanes(job.model, job.going_on)
            if lanes is not None:
                job.lanes = lanes
                self._scheduler.submit_ready(job)
                return []
        if len(controls) == 1:
            self._follow(job)
            control = controls[0]
            lane = self._lane(job.model, control, now)
            job.places = [Place(lane, start=control.start, end=control.end, step=control.step)]
        elif controls:
            self._follow(job)
            places: list[Place] = []
            try:
                for control in controls:
                    lane = self._lane(job.model, control, now)
                    lane.jobs.append(job)  # so that it is not evicted to make room for the next
                    places.append(Place(lane, start=control.start, end=control.end, step=control.step))
            finally:
                for place in places:
                    place.lane.jobs.pop()
                    if len(places) < len(controls):
                        self._sequences.release(place.lane)
            job.places = places
        return self._scheduler.submit(job)

    def _follow(self, job: Job) -> None:
        """Let a step run where its sequence does, if a model was replaced after the step was checked."""
        control = job.controls[0]
        if control.start:
            self.repository.get(job.model.name)  # a sequence must not outlive its model's unloading
            return
        found = self._sequences.next_model_of(job.model.name, control.id)
        if found is None or found is job.model or (job.pinned and found.version != job.model.version):
            return
        if found.manifest == job.model.manifest:
            job.model = found

    def _lane(self, model: Model, control: Control, now: float) -> Lane:
        if control.start:
            return self._sequences.open(model, control.id, now)
        return self._sequences.find(model, control.id, now, numbered=control.step is not None)

    def open_sequence(
        self,
        model: str,
        *,
        sequence_id: SequenceId | None = None,
        state: Mapping[str, Array] | None = None,
        version: str = "",
        step: int | None = None,
    ) -> "EngineSequence":
        """Start a sequence.

        Args:
            model: the model's name.
            sequence_id: its id; None for one that the engine chooses.
            state: states to start from, `[1, …]` by input name; what is left out starts at its initial value.
            version: the model's version; empty for the newest.
            step: the number of the step that the state is after; None if steps have no numbers.

        Raises:
            ServingError: the model has no sequences, the states do not fit it, or there is no room.
        """
        found = self.repository.get(model, version)
        given = found.contract.bind_states(state or {})
        with self._changed:
            if self.runner.closed:
                raise UnavailableError("the engine is closed")
            self.repository.get(model)  # a sequence must not outlive its model's unloading
            now = self.clock()
            self._sequences.evict_idle(now)
            if sequence_id is None:
                sequence_id = self._checker.choose_id(found)
            control = Control(id=sequence_id, start=True)
            lane = self._sequences.open(found, control.id, now)
            if lane.jobs:
                raise SequenceExistsError(f"sequence {sequence_id!r} of model {model!r} has steps that wait")
            self._sequences.begin(lane, found, start=True, given=given)
            slot = found.slots.take()
            found.arena.write(slot, given)
            answer = None if step is None else Answer(step, b"", None, 0)
            self._sequences.advance(lane, found, slot, now, start=True, answer=answer)
            if self.runner.unwatched:
                self._changed.notify()
        from .engine_sequence import EngineSequence

        return EngineSequence(self, found, sequence_id)

    def close(self, seconds: float | None = None) -> None:
        """Refuse what waits and wait for what runs, but not longer than `seconds` for each worker."""
        if self._loader is not None:
            self._loader.close(seconds)
        self.runner.close(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        with self._changed:
            return f"<Engine {self._scheduler!r}>"

    def cancel(self, job: Job, error: Exception) -> bool:
        """Drop a request with `error` unless the last of it runs already; return whether it ends so."""
        with self._changed:
            if job.phase == "new":
                job.finish()
                dropped, completions = True, [Completion(job, error)]
            else:
                dropped, completions = self._scheduler.cancel(job, error)
            if completions:
                self._changed.notify()
        deliver(completions)
        return dropped

    def holds(self, model: Model, sequence_id: SequenceId) -> bool:
        """Return whether a sequence is running."""
        with self._changed:
            return self._sequences.holds(model, sequence_id)

    def model_of(self, model: str, sequence_id: SequenceId) -> Model:
        """Return the model that a sequence runs on, or would if it ran.

        Raises:
            ModelNotFoundError: there is none of that name.
        """
        return self._sequences.model_of(model, sequence_id) or self.repository.get(model)

    def snapshot(self, model: Model, sequence_id: SequenceId) -> tuple[dict[str, Array], int | None]:
        """Return a sequence's states after the last step that is done, `[1, …]` by input name, and the step's number.

        Raises:
            SequenceNotFoundError: it is not running.
        """
        with self._changed:
            lane = self._sequences.get(model, sequence_id)
            slot = self._sequences.begin(lane, model, start=False, given=())
            assert slot is not None
            return model.arena.read(slot), None if lane.answer is None else lane.answer.step

    def expected_seconds(self, job: Job) -> float:
        """Return how long a run of one request would take."""
        return job.model.costs.seconds(job.rows, job.steps) if job.bound is not None else 0.0

    def _is_brief(self, job: Job) -> bool:
        """Return whether runs of a request's model mostly take so little time that answering takes as long.

        Those of a generation go on by themselves, and what runs of a model that is not cut take hangs on more than rows
        and steps.
        """
        model = job.model
        short = model.costs.usual_seconds <= self.settings.inline_seconds
        return short and model.contract.cuts and job.generation is None
