"""One export at a time.

Capturing and proving a module run it with another default dtype and with torch's packing functions exchanged, which
belong to the process. Exports of two threads wait for each other; a thread that only runs models is not held up.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_lock = threading.RLock()


def alone(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function wait until no other thread is in a function made so."""

    @functools.wraps(function)
    def waiting(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with _lock:
            return function(*args, **kwargs)

    return waiting
