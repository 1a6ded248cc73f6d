"""What is asked of the engine, and what it answers: plain values that know neither the wire nor a thread."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cellport.errors import InvalidRequestError

from .codec import Array

if TYPE_CHECKING:
    from .generation import Sampling

SequenceId = int | str
MAXIMUM_ID_LENGTH = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """A request's place in a sequence.

    Attributes:
        id: the sequence's, not 0 and not empty.
        start: the sequence starts with this step.
        end: the sequence ends with this step.
        step: the step's number, which makes it safe to repeat: a step follows the one before it by 1, and the last
            one that was done is answered again without being done again. None for a step without one.
    """

    id: SequenceId
    start: bool = False
    end: bool = False
    step: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None and self.step < 0:
            raise InvalidRequestError(f"sequence_step is {self.step}; accepted: at least 0")
        if not self.id:
            raise InvalidRequestError(f"sequence_id is {self.id!r}; accepted: an integer other than 0, or some text")
        if isinstance(self.id, str) and len(self.id) > MAXIMUM_ID_LENGTH:
            raise InvalidRequestError(
                f"sequence_id has {len(self.id)} characters; accepted: at most {MAXIMUM_ID_LENGTH}"
            )


# Not frozen, like all that is made for every request: a frozen dataclass takes three times as long to make.
@dataclass(kw_only=True, eq=False, slots=True)
class Request:
    """One inference request.

    Attributes:
        model: the model's name.
        inputs: batch-first arrays by input name; states by their input name.
        outputs: names of the outputs wanted; empty for every output that is not a state.
        version: the model's version; empty for the newest.
        deadline: moment on the engine's clock after which the answer is of no use; None for never.
        priority: a smaller number runs first; 0 for the engine's default.
        control: the request's place in a sequence, or of each of its rows in a sequence of its own; None outside one.
        new: the request starts a sequence under an id that the engine chooses, and tells in its reply.
        sampling: the request is a prompt, and how to go on from it; None for one that is run as it is.
        controls: the place of each row in a sequence; empty outside one.
        going_on: the model's name and the id of the sequence of each row, if all rows are steps without a number that
            neither start nor end one; else empty.
        form: the same object for requests that have the same inputs by name, element type and shape, and the same
            outputs; None if nothing is known of that.
    """

    model: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str] = ()
    version: str = ""
    deadline: float | None = None
    priority: int = 0
    control: Control | Sequence[Control] | None = None
    new: bool = False
    sampling: "Sampling | None" = None
    form: Hashable = None
    controls: Sequence[Control] = field(init=False)
    going_on: Sequence[tuple[str, SequenceId]] = field(init=False)

    def __post_init__(self) -> None:
        if self.control is None:
            self.controls = ()
        else:
            self.controls = (self.control,) if isinstance(self.control, Control) else self.control
        plain = all(not (each.start or each.end) and each.step is None for each in self.controls)
        self.going_on = tuple([(self.model, each.id) for each in self.controls]) if plain else ()
        if self.sampling is not None and (self.new or self.control is not None):
            raise InvalidRequestError("max_tokens is given inside a sequence; accepted: outside of sequences")
        if self.new and self.control is not None:
            raise InvalidRequestError("a request starts a new sequence and names one; accepted: one of both")
        if self.control is not None and not isinstance(self.control, Control):
            ids = [each.id for each in self.control]
            if not ids or len(set(ids)) != len(ids):
                raise InvalidRequestError(f"sequence_ids is {ids!r:.200}; accepted: at least one, each only once")
        if self.priority < 0:
            raise InvalidRequestError(f"priority is {self.priority}; accepted: at least 0")
        if self.deadline is not None and math.isnan(self.deadline):
            raise InvalidRequestError(f"deadline is {self.deadline}; accepted: a moment on the engine's clock")


@dataclass(kw_only=True, eq=False, slots=True)
class Reply:
    """The answer to one request: batch-first arrays by output name, and the model that computed them.

    `sequence_id` is the id that the engine has chosen, if it was asked to choose one; `finish` is why a generation is
    over, ``"stop"`` or ``"length"``.
    """

    model: str
    version: str
    outputs: Mapping[str, Array]
    sequence_id: SequenceId | None = None
    finish: str | None = None
