"""A trace in which a Python loop over time lies unrolled, read at several lengths, and the loops found in it.

torch.export unrolls such a loop: each iteration is the same group of operators again. Traces at three lengths tell
where such a group repeats as often as there are steps, and every integer that depends on the length or on the step is
fitted over all of them: what fits at three lengths and at each of their steps is the rule that the loop followed.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

__all__ = ["NotALoop", "Op", "Pick", "Ref", "Segment", "Trace", "loops_of", "read"]

_aten = torch.ops.aten
_END = 2**63 - 1
_SAME = frozenset([_aten.alias.default, _aten.detach.default, _aten.detach_.default, _aten.lift_fresh_copy.default])
_FACTORIES = frozenset(
    [
        *(_aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.empty.memory_format),
        *(_aten.arange.default, _aten.arange.start, _aten.arange.start_step, _aten.sym_size.int),
        *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.new_empty.default),
        *(_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.empty_like.default),
    ]
)
_CANDIDATES = 200


class NotALoop(Exception):  # noqa: N818
    """Why a trace cannot be read as loops."""


@dataclass(frozen=True)
class Ref:
    """The value of an operator, by its place in the trace."""

    index: int


@dataclass(frozen=True)
class Pick:
    """One place along an axis of a value; `keep` keeps the axis, with size 1."""

    source: Any
    axis: int
    index: int
    keep: bool


@dataclass(frozen=True)
class Op:
    """One operator, or an input (``"input"``, position), a weight (``"weight"``, name) or a constant of the trace."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def key(self) -> str:
        """What operators have in common that may be the same one in different iterations."""
        return f"{self.target}{_kinds(self.args)}{_kinds(self.kwargs)}"


@dataclass(frozen=True)
class Trace:
    """The operators of a module at one length, factories first.

    Attributes:
        steps: the length.
        ops: the operators in order.
        results: what forward returns, as expressions over them.
        structure: how the results are put together.
        constants: tensors that the trace holds, in the order of their use.
    """

    steps: int
    ops: Sequence[Op]
    results: Sequence[Any]
    structure: Any
    constants: Sequence[torch.Tensor]


@dataclass(frozen=True)
class Segment:
    """A part of a trace: `length` operators, which repeat once a step if `loop`."""

    length: int
    loop: bool


def read(program: torch.export.ExportedProgram, steps: int, prefix: str = "") -> Trace:
    """Read an exported program.

    Args:
        program: of the module at one length.
        steps: the length.
        prefix: what the names of its weights begin with and what is left away.

    Raises:
        NotALoop: it changes a tensor in place in a way that cannot be undone.
    """
    if any(_changes(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = dict(signature.inputs_to_lifted_tensor_constants)
    users = list(signature.user_inputs)
    ops: list[Op] = []
    found: dict[Node, Any] = {}
    unbound: dict[Node, tuple[Any, int]] = {}
    held: list[torch.Tensor] = []
    results: Sequence[Any] = ()

    def expression(value: Any) -> Any:
        if isinstance(value, Node):
            return found[value]
        if isinstance(value, tuple | list):
            return [expression(each) for each in value]
        if isinstance(value, dict):
            return {name: expression(each) for name, each in value.items()}
        return value

    def add(node: Node, op: Op) -> None:
        found[node] = Ref(len(ops))
        ops.append(op)

    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in users:
                add(node, Op("input", (users.index(node.name),), {}))
            elif node.name in weights:
                add(node, Op("weight", (weights[node.name].removeprefix(prefix),), {}))
            elif node.name in constants:
                held.append(program.constants[constants[node.name]])
                add(node, Op("constant", (len(held) - 1,), {}))
            continue
        if node.op == "output":
            results = [expression(each) for each in node.args[0]]
            continue
        if node.op != "call_function":
            raise NotALoop(f"the trace holds {node.op} {node.name!r}")
        if node.target is _aten.unbind.int:
            unbound[node] = (expression(node.args[0]), int(node.args[1]) if len(node.args) > 1 else 0)
        elif node.args and node.args[0] in unbound:
            source, axis = unbound[node.args[0]]
            found[node] = Pick(source, axis, int(node.args[1]), False)
        elif (same := _same(node, expression)) is not None:
            found[node] = same
        else:
            add(node, Op(node.target, tuple(expression(each) for each in node.args), expression(dict(node.kwargs))))
    return _factories_first(Trace(steps, ops, results, program.call_spec.out_spec, held))


def _changes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _same(node: Node, expression: Any) -> Any:
    """What a node is if it only passes a value on, or picks one place of it."""
    args: Any = node.args
    if node.target in _SAME:
        return expression(args[0])
    if node.target is _aten.copy.default and _shape(args[0]) == _shape(args[1]):
        return expression(args[1])
    if node.target is _aten.select.int and isinstance(args[2], int):
        return Pick(expression(args[0]), args[1], args[2], False)
    if node.target in (_aten.slice.Tensor, _aten.slice_scatter.default):
        first = 1 if node.target is _aten.slice.Tensor else 2
        given: list[Any] = [*args[first:], *(0, None, None, 1)[len(args) - first :]]
        axis, start, stop, step = given
        if start in (None, 0) and stop in (None, _END) and step == 1:
            return expression(args[first - 1])
        if first == 1 and step == 1 and isinstance(start, int) and isinstance(stop, int) and stop == start + 1:
            return Pick(expression(args[0]), axis, start, True)
    return None


def _shape(node: Any) -> Any:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return None if value is None else [str(size) for size in value.shape]


def _factories_first(trace: Trace) -> Trace:
    """Move what depends on no value in front, such as zeros that the first iteration alone makes."""
    free: list[bool] = []
    for op in trace.ops:
        leaves = [leaf for leaf in pytree.tree_leaves((op.args, op.kwargs)) if isinstance(leaf, Ref | Pick)]
        inside = all(isinstance(leaf, Ref) and free[leaf.index] for leaf in leaves)
        whole = getattr(op.target, "__module__", "") == "_operator" and bool(leaves) and inside
        shapes = op.target in _FACTORIES and all(
            isinstance(leaf, Ref) and (free[leaf.index] or _is_source(trace.ops[leaf.index])) for leaf in leaves
        )
        free.append(isinstance(op.target, str) or whole or shapes)
    order = sorted(range(len(free)), key=lambda index: not free[index])
    places = {index: place for place, index in enumerate(order)}

    def moved(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(places[value.index])
        if isinstance(value, Pick):
            return Pick(moved(value.source), value.axis, value.index, value.keep)
        if isinstance(value, list):
            return [moved(each) for each in value]
        if isinstance(value, dict):
            return {name: moved(each) for name, each in value.items()}
        return value

    ops = [trace.ops[index] for index in order]
    return Trace(
        trace.steps,
        [Op(op.target, tuple(moved(each) for each in op.args), moved(op.kwargs)) for op in ops],
        [moved(each) for each in trace.results],
        trace.structure,
        trace.constants,
    )


def _is_source(op: Op) -> bool:
    return isinstance(op.target, str)


def _kinds(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return "i"
    if isinstance(value, Ref | Pick):
        return "v"
    if isinstance(value, list):
        return "[v]" if value and all(isinstance(each, Ref | Pick) for each in value) else str(list(map(_kinds, value)))
    if isinstance(value, tuple):
        return str([_kinds(each) for each in value])
    if isinstance(value, dict):
        return str({name: _kinds(each) for name, each in value.items()})
    return repr(value)


def loops_of(traces: Sequence[Trace]) -> Iterator[list[Segment]]:
    """Ways to cut traces of one module into segments, likely ones first.

    Args:
        traces: the module at different lengths.

    Yields:
        Segments that hold for all traces; at most 200 ways.
    """
    keys = [[op.key() for op in trace.ops] for trace in traces]
    yield from itertools.islice(_cut(keys, [trace.steps for trace in traces], (0,) * len(keys)), _CANDIDATES)


def _cut(keys: list[list[str]], steps: list[int], starts: tuple[int, ...]) -> Iterator[list[Segment]]:
    left = [len(each) - start for each, start in zip(keys, starts, strict=True)]
    if len(set(left)) == 1:
        if all(each[start:] == keys[0][starts[0] :] for each, start in zip(keys, starts, strict=True)):
            yield [Segment(left[0], False)]
        return
    more = (left[1] - left[0]) // (steps[1] - steps[0])
    for before in range(min(left) + 1):
        if before and len({each[start + before - 1] for each, start in zip(keys, starts, strict=True)}) > 1:
            return
        for body in range(1, more + 1):
            ends = tuple(start + before + body * count for start, count in zip(starts, steps, strict=True))
            if any(end > len(each) for end, each in zip(ends, keys, strict=True)):
                break
            first = keys[0][starts[0] + before : starts[0] + before + body]
            if all(
                each[start + before : end] == first * count
                for each, start, end, count in zip(keys, starts, ends, steps, strict=True)
            ):
                for rest in _cut(keys, steps, ends):
                    yield [Segment(before, False), Segment(body, True), *rest]
