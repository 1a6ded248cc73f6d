"""The numbers that a module's own code is written with: what it compares sizes and values to is among them.

A proof that draws at random does not meet the one token, or the one length, that a branch waits for.
"""

import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["numbers_of"]

_DEPTH = 3
_LIBRARIES = ("torch", "cellport", "numpy", "math", "builtins")


def numbers_of(model: nn.Module) -> frozenset[float]:
    """Return the numbers in the code and attributes of a module and its submodules, and of functions that they call.

    Those of torch and of cellport themselves are not among them.
    """
    found: set[float] = set()
    seen: set[int] = set()
    for module in model.modules():
        kind = type(module)
        own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
        if not _is_library(kind.__module__):
            found.update(_numbers(own.values()))
            for owner in kind.__mro__:
                if not _is_library(owner.__module__):
                    found.update(_numbers(vars(owner).values()))
                    for value in vars(owner).values():
                        found.update(_in_function(value, seen, _DEPTH))
        forward = own.get("forward")
        found.update(_in_function(forward, seen, _DEPTH))
    return frozenset(found)


def _is_library(name: str) -> bool:
    return name.split(".")[0] in _LIBRARIES


def _numbers(values: Any) -> Iterator[float]:
    """The numbers among values, and in lists, tuples and dicts of them."""
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value
        elif isinstance(value, list | tuple | set | frozenset) and len(value) < 1000:
            yield from _numbers(value)
        elif isinstance(value, dict) and len(value) < 1000:
            yield from _numbers([*value.keys(), *value.values()])


def _in_function(value: Any, seen: set[int], depth: int) -> Iterator[float]:
    """The numbers in a function, and in the functions of its modules that it names."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, types.MethodType):
        value = value.__func__
    if not isinstance(value, types.FunctionType) or id(value) in seen or not depth:
        return
    seen.add(id(value))
    if _is_library(value.__module__ or ""):
        return
    yield from _numbers(value.__defaults__ or ())
    yield from _numbers((value.__kwdefaults__ or {}).values())
    for cell in value.__closure__ or ():
        try:
            inner = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield from _numbers([inner])
        yield from _in_function(inner, seen, depth - 1)
    yield from _in_code(value.__code__, value.__globals__, seen, depth)


def _in_code(code: types.CodeType, globals_: dict[str, Any], seen: set[int], depth: int) -> Iterator[float]:
    yield from _numbers(each for each in code.co_consts if not isinstance(each, types.CodeType))
    for name in code.co_names:
        if name in globals_:
            named = globals_[name]
            if isinstance(named, int | float | list | tuple | dict):
                yield from _numbers([named])
            else:
                yield from _in_function(named, seen, depth - 1)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _in_code(each, globals_, seen, depth)
