"""The service SequenceStates: states of sequences in their clients' hands."""

from cellport.errors import InvalidRequestError
from cellport.protos import sequences_pb2 as messages

from .calls import CallContext, Lifecycle
from .engine import Engine
from .exchange import Snapshot, read_reference, read_snapshot, write_reference, write_snapshot
from .requests import SequenceId


class StateCalls:
    """The handlers.

    Args:
        engine: has the sequences.
        lifecycle: whether calls are taken.
    """

    def __init__(self, engine: Engine, lifecycle: Lifecycle) -> None:
        self._engine = engine
        self._lifecycle = lifecycle

    async def export(self, message: messages.ExportRequest, _context: CallContext) -> messages.SequenceState:
        """Answer the state of a sequence after the last step that is done."""
        with self._lifecycle.running():
            return write_snapshot(self._snapshot(message.sequence))

    async def import_(self, message: messages.ImportRequest, _context: CallContext) -> messages.SequenceReference:
        """Start a sequence from a state."""
        with self._lifecycle.running():
            snapshot = read_snapshot(message.state)
            name = message.sequence.model_name or snapshot.model
            if snapshot.model not in ("", name):
                raise InvalidRequestError(
                    f"the state is of model {snapshot.model!r}; accepted: {name!r}, the sequence's"
                )
            return self._start(name, read_reference(message.sequence), snapshot)

    async def fork(self, message: messages.ForkRequest, _context: CallContext) -> messages.SequenceReference:
        """Start a sequence from the state that another one has."""
        with self._lifecycle.running():
            snapshot = self._snapshot(message.sequence)
            if message.into.model_name not in ("", snapshot.model):
                raise InvalidRequestError(
                    f"the fork is of model {message.into.model_name!r}; accepted: {snapshot.model!r}, the sequence's"
                )
            into = read_reference(message.into)
            if into == read_reference(message.sequence):
                raise InvalidRequestError(f"sequence {into!r} is to be forked into itself; accepted: another id")
            return self._start(snapshot.model, into, snapshot)

    def _snapshot(self, sequence: messages.SequenceReference) -> Snapshot:
        sequence_id = read_reference(sequence)
        if sequence_id is None:
            raise InvalidRequestError("the sequence's id is missing; accepted: a number other than 0, or some text")
        model = self._engine.model_of(sequence.model_name, sequence_id)
        states, step = self._engine.snapshot(model, sequence_id)
        return Snapshot(model=model.name, version=model.version, states=states, step=step)

    def _start(self, model: str, sequence_id: SequenceId | None, snapshot: Snapshot) -> messages.SequenceReference:
        sequence = self._engine.open_sequence(
            model, sequence_id=sequence_id, state=snapshot.states, version=snapshot.version, step=snapshot.step
        )
        return write_reference(model, sequence.id)
