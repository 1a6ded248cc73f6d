"""What a forward computes from its weights and sizes alone, computed once and first.

Zeros that the first iteration makes because no state was given, or a weight that every iteration transposes, would make
iterations differ or repeat work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .traces import Op, Pick, Ref, Trace, leaves_of

__all__ = ["hoisted", "key"]


def key(op: Op) -> str:
    """What two calls have in common that may be the same call of two iterations."""
    return f"{op.target!r}{_kinds(op.args)}{_kinds(op.kwargs)}"


def hoisted(traces: Sequence[Trace]) -> list[Trace]:
    """The traces of one module at several sizes with what depends on no argument in front, each value once.

    What takes as many values as there are steps stays where it is.
    """
    distinct = [_distinct(trace) for trace in traces]
    counts: list[dict[str, int]] = []
    for trace, same in zip(traces, distinct, strict=True):
        count: dict[str, int] = {}
        for index in set(same.values()):
            name = key(trace.ops[index])
            count[name] = count.get(name, 0) + 1
        counts.append(count)
    steady = {name for name, number in counts[0].items() if all(each.get(name) == number for each in counts)}
    # What also takes arguments may be a step of the loop, which starts from zeros.
    steady -= {key(trace.ops[index]) for trace in traces for index in trace.tainted}
    return [_moved(trace, same, steady) for trace, same in zip(traces, distinct, strict=True)]


def _distinct(trace: Trace) -> dict[int, int]:
    """For each call that depends on no argument the first that gives the same."""
    first: dict[str, int] = {}
    same: dict[int, int] = {}
    for index, op in enumerate(trace.ops):
        if index not in trace.tainted:
            value = repr((op.target, _replaced(op.args, same), _replaced(op.kwargs, same)))
            same[index] = first.setdefault(value, index)
    return same


def _moved(trace: Trace, same: Mapping[int, int], steady: set[str]) -> Trace:
    taken: set[int] = set()
    for index in same:
        op = trace.ops[index]
        needs = {_source(leaf) for leaf in leaves_of((op.args, op.kwargs))}
        if key(op) in steady and all(need is None or need in taken for need in needs):
            taken.add(index)
    front = sorted({same[index] for index in taken})
    order = [*front, *(index for index in range(len(trace.ops)) if index not in taken)]
    places = {index: place for place, index in enumerate(order)}
    places |= {index: places[same[index]] for index in taken}
    ops = [
        Op(
            trace.ops[index].target,
            _replaced(trace.ops[index].args, places),
            _replaced(trace.ops[index].kwargs, places),
        )
        for index in order
    ]
    return replace(
        trace,
        ops=ops,
        results=[_replaced(each, places) for each in trace.results],
        shapes={_replaced(value, places): shape for value, shape in trace.shapes.items()},
        tainted={places[index] for index in trace.tainted},
    )


def _source(value: Any) -> int | None:
    while isinstance(value, Pick):
        value = value.source
    return value.op if isinstance(value, Ref) else None


def _replaced(value: Any, places: Mapping[int, int]) -> Any:
    if isinstance(value, Ref):
        return Ref(places.get(value.op, value.op), value.leaf)
    if isinstance(value, Pick):
        return replace(value, source=_replaced(value.source, places))
    if isinstance(value, tuple | list):
        return type(value)(_replaced(each, places) for each in value)
    if isinstance(value, dict):
        return {name: _replaced(each, places) for name, each in value.items()}
    return value


def _kinds(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return repr(value)
    if isinstance(value, int):
        return "i"
    if isinstance(value, tuple | list):
        kinds = [_kinds(each) for each in value]
        return "[v]" if kinds and set(kinds) == {"v"} else str(kinds)
    if isinstance(value, dict):
        return str({name: _kinds(each) for name, each in value.items()})
    if isinstance(value, slice):
        return f"slice({_kinds(value.start)}, {_kinds(value.stop)}, {_kinds(value.step)})"
    return "v" if hasattr(value, "__dataclass_fields__") else type(value).__name__
