"""Let the steps of a Scan compute those rows alone that anything reads."""

from collections.abc import Iterator

import onnx_ir as ir

from .graphs import nodes, scan_body, scan_states
from .row_rules import Unknown, rows_after

__all__ = ["CHOOSE", "MARKS", "NarrowScans"]

MARKS, CHOOSE = "cellport.marks", "Choose"
"""Domain and name of the mark: the bounds of a window, and those of all rows, of which it stands for either."""


class NarrowScans(ir.passes.InPlacePass):
    """Decide for each Scan whether its steps compute windows of rows or all of them.

    A wavefront (`cells/windows.py`) takes rows out of the tensors of a step by Slices whose bounds the Scan is given,
    and puts zeros around what it made of them by Pads. `Choose` stands in front of the Scan for bounds that differ from
    step to step or for those of all rows. The first is chosen where all that is between the Slices and the Pads is
    known to treat rows alike, whatever their number (`row_rules.py`), and the second elsewhere.

    Precondition: constants are folded, and what a step does not need is out of the body.

    Postcondition: no mark is left. In the shapes of a narrowed body the rows of a window are an axis of their own name:
    the runtime takes axes of one name for equal when it lets tensors share memory.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        marks = [node for node in nodes(model) if node.domain == MARKS]
        narrowed: dict[ir.Node, dict[ir.Value, int] | None] = {}
        for mark in marks:
            for scan, _ in _scans_behind(mark.outputs[0]):
                narrowed.setdefault(scan, None)
        for scan in narrowed:
            bounds = {
                scan_body(scan).inputs[index]
                for mark in marks
                for other, index in _scans_behind(mark.outputs[0])
                if other is scan
            }
            narrowed[scan] = _windows(scan, bounds)
        for mark in marks:
            narrow, whole = mark.inputs
            fits = all(narrowed[scan] is not None for scan, _ in _scans_behind(mark.outputs[0]))
            chosen = narrow if fits else whole
            assert chosen is not None
            ir.convenience.replace_all_uses_with(mark.outputs[0], chosen)
        for mark in marks:
            assert mark.graph is not None
            mark.graph.remove(mark, safe=True)
        taken = _axis_names(model) if marks else set()
        for values in narrowed.values():
            _rename(values or {}, taken)
        model.graph.opset_imports.pop(MARKS, None)
        return ir.passes.PassResult(model, bool(marks))


def _scans_behind(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The Scans that a value reaches, each with the input that it reaches it by; not what is behind them."""
    found, left, seen = set(), [value], {value}
    while left:
        for node, index in left.pop().uses():
            if node.op_type == "Scan" and node.domain == "":
                if (node, index) not in found:
                    found.add((node, index))
                    yield node, index
                continue
            left += [each for each in node.outputs if each not in seen]
            seen.update(node.outputs)


def _windows(scan: ir.Node, bounds: set[ir.Value]) -> dict[ir.Value, int] | None:
    """The values of a body that hold the rows of a window, each with the place of their axis from the end.

    None if anything is not known to treat rows alike, or uses the bounds for something else.
    """
    body = scan_body(scan)
    if any(value in bounds for value in body.inputs[: scan_states(scan)]):
        return None
    known: dict[ir.Value, int] = {}
    try:
        for node in body:
            known |= dict.fromkeys(node.outputs, place) if (place := rows_after(node, known, bounds)) else {}
    except Unknown:
        return None
    return None if any(output in known or output in bounds for output in body.outputs) else known


def _axis_names(model: ir.Model) -> set[str]:
    values = [*model.graph.inputs, *(value for node in nodes(model) for value in node.outputs)]
    return {str(dim) for value in values if value.shape is not None for dim in value.shape}


def _rename(windows: dict[ir.Value, int], taken: set[str]) -> None:
    """Give the axis of rows in the shapes of windows a name of its own."""
    name, count = "window", 0
    while name in taken:
        count += 1
        name = f"window_{count}"
    taken.add(name)
    for value, place in windows.items():
        assert value.shape is not None
        dims: list[int | str | None] = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        dims[-place] = name
        value.shape = ir.Shape(dims)
