"""A sequence as a caller in the same process holds it."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from cellport.errors import ServingError

from .codec import Array
from .engine import Engine
from .model import Model
from .requests import Control, Request, SequenceId


class EngineSequence:
    """One running sequence of an engine; a context manager that ends it.

    Attributes:
        id: its id.
    """

    def __init__(self, engine: Engine, model: Model, sequence_id: SequenceId) -> None:
        self.id = sequence_id
        self._engine = engine
        self._model = model

    def request(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None, deadline: float | None, *, end: bool = False
    ) -> Request:
        """Return the request of one step."""
        return Request(
            model=self._model.name,
            version=self._model.version,
            inputs=inputs,
            outputs=tuple(outputs or ()),
            deadline=deadline,
            control=Control(id=self.id, end=end),
        )

    def step(
        self, inputs: Mapping[str, Array], *, outputs: Sequence[str] | None = None, deadline: float | None = None
    ) -> dict[str, Array]:
        """Advance by the steps in `inputs` and return the outputs.

        Args:
            inputs: arrays `[1, time, …]` by input name; or `[1, …]` for one step, and then the outputs have no time
                axis either.
            outputs: as in `Engine.infer`.
            deadline: as in `Engine.infer`.

        Raises:
            ServingError: the step was not done; the state is what it was.
        """
        return dict(self._engine.call(self.request(inputs, outputs, deadline)).outputs)

    def state(self) -> dict[str, Array]:
        """Return the states after the last step that is done, `[1, …]` by input name."""
        return self._engine.snapshot(self._model, self.id)[0]

    def fork(self, sequence_id: SequenceId | None = None) -> "EngineSequence":
        """Start another sequence from this one's states."""
        return self._engine.open_sequence(
            self._model.name, sequence_id=sequence_id, state=self.state(), version=self._model.version
        )

    def end(self) -> None:
        """End the sequence and forget its states."""
        self._engine.call(self.request({}, None, None, end=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A sequence that was ended or evicted meanwhile needs no end, and an error in the body must not be hidden.
        try:
            self.end()
        except ServingError:
            if kind is None and self._engine.holds(self._model, self.id):
                raise
