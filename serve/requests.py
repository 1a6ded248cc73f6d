"""What is asked of the engine, and what it answers: plain values that know neither the wire nor a thread."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cellport.errors import InvalidRequestError

from .codec import Array

SequenceId = int | str
MAXIMUM_ID_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class Control:
    """A request's place in a sequence.

    Attributes:
        id: the sequence's, not 0 and not empty.
        start: the sequence starts with this step.
        end: the sequence ends with this step.
    """

    id: SequenceId
    start: bool = False
    end: bool = False

    def __post_init__(self) -> None:
        if not self.id:
            raise InvalidRequestError(f"sequence_id is {self.id!r}; accepted: an integer other than 0, or some text")
        if isinstance(self.id, str) and len(self.id) > MAXIMUM_ID_LENGTH:
            raise InvalidRequestError(
                f"sequence_id has {len(self.id)} characters; accepted: at most {MAXIMUM_ID_LENGTH}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One inference request.

    Attributes:
        model: the model's name.
        inputs: batch-first arrays by input name; states by their input name.
        outputs: names of the outputs wanted; empty for every output that is not a state.
        version: the model's version; empty for the newest.
        deadline: moment on the engine's clock after which the answer is of no use; None for never.
        priority: a smaller number runs first; 0 for the engine's default.
        control: the request's place in a sequence; None outside one.
    """

    model: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str] = ()
    version: str = ""
    deadline: float | None = None
    priority: int = 0
    control: Control | None = None

    def __post_init__(self) -> None:
        if self.priority < 0:
            raise InvalidRequestError(f"priority is {self.priority}; accepted: at least 0")
        if self.deadline is not None and math.isnan(self.deadline):
            raise InvalidRequestError(f"deadline is {self.deadline}; accepted: a moment on the engine's clock")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """The answer to one request: batch-first arrays by output name, and the model that computed them."""

    model: str
    version: str
    outputs: Mapping[str, Array]
