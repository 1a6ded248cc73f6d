"""How fast onnxruntime multiplies by int8 weights, and reads int8 tables, in each of the forms that it has.

Every form runs in onnxruntime with one thread, in interleaved rounds on the same inputs. Printed are microseconds (of a
step, in bodies) and, in brackets, the time of float32 over that of the form: above 1, it is faster. Decision 9 holds
what was printed and what follows from it.

    python benchmarks/int8_products.py [--parts outside inside tables] [--seconds 1.2]
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from cellport.export.passes.int8_weights import quantised_columns, quantised_range
from cellport.export.passes.table_types import quantised_rows

Array = np.ndarray[Any, Any]
Form = tuple[list[NodeProto], dict[str, Array]]
MICROSOFT, FLOAT, STEPS = "com.microsoft", TensorProto.FLOAT, 64


def session(form: Form, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnxruntime.InferenceSession:
    nodes, arrays = form
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "form", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def products(weight: Array, addend: str | None) -> dict[str, Form]:
    """Forms of y = x weight, plus an addend if there is one, for x in [-1, 1]."""
    whole, scale = quantised_columns(weight)
    step, zero = quantised_range(-1, 1)
    shifted = {
        "w": (whole.astype(np.int16) + 128).astype(np.uint8),
        "s": scale,
        "z": np.full(len(scale), 128, np.uint8),
    }
    make, out = helper.make_node, "y" if addend is None else "p"
    tail = [] if addend is None else [make("Add", ["p", addend], ["y"])]
    fixed = {"w": whole, "s": scale, "a": step, "b": zero}
    found = [
        make("DynamicQuantizeLinear", ["x"], ["q", "a", "b"]),
        make("MatMulInteger", ["q", "w", "b"], ["i"]),
        make("Cast", ["i"], ["f"], to=FLOAT),
        make("Mul", ["a", "s"], ["m"]),
        make("Mul", ["f", "m"], [out]),
    ]
    given = [make("QuantizeLinear", ["x", "a", "b"], ["q"])]
    own = make("MatMulIntegerToFloat", ["q", "w", "a", "s", "b"], [out], domain=MICROSOFT)
    standard = [
        make("MatMulInteger", ["q", "w", "b"], ["i"]),
        make("Cast", ["i"], ["f"], to=FLOAT),
        make("Mul", ["f", "s"], [out]),
    ]
    float32 = make("MatMul", ["x", "w"], ["y"]) if addend is None else make("Gemm", ["x", "w", addend], ["y"])
    dynamic = make("DynamicQuantizeMatMul", ["x", "w", "s"], [out], domain=MICROSOFT)
    unsigned = make("DynamicQuantizeMatMul", ["x", "w", "s", "z"], [out], domain=MICROSOFT)
    signed = fixed | {"a": np.array(1 / 127, np.float32), "b": np.array(0, np.int8)}
    return {
        "float32": ([float32], {"w": weight}),
        "DynamicQuantizeMatMul": ([dynamic, *tail], {"w": whole, "s": scale}),
        "standard, dynamic": ([*found, *tail], {"w": whole, "s": scale}),
        "uint8 weights, dynamic": ([unsigned, *tail], shifted),
        "MatMulIntegerToFloat": ([*given, own, *tail], fixed),
        "standard, fixed": ([*given, *standard, *tail], fixed | {"s": scale * step}),
        "int8 activations": ([*given, own, *tail], signed),
    }


def outside(rows: int, inputs: int, columns: int) -> dict[str, Callable[[], Any]]:
    random = np.random.default_rng(0)
    weight = (random.standard_normal((inputs, columns)) / inputs**0.5).astype(np.float32)
    feeds = {"x": random.uniform(-1, 1, (rows, inputs)).astype(np.float32)}
    ends = (
        [helper.make_tensor_value_info("x", FLOAT, ["m", inputs])],
        [helper.make_tensor_value_info("y", FLOAT, ["m", columns])],
    )
    return runs({name: session(form, *ends) for name, form in products(weight, None).items()}, feeds)


def inside(rows: int, hidden: int) -> dict[str, Callable[[], Any]]:
    """A Scan whose step multiplies its state, splits the product in three and returns a tanh of one part."""
    random = np.random.default_rng(0)
    weight = (random.standard_normal((hidden, 3 * hidden)) / hidden**0.5).astype(np.float32)
    feeds = {
        "h": np.zeros((rows, hidden), np.float32),
        "xs": random.standard_normal((STEPS, rows, 3 * hidden)).astype(np.float32),
    }
    typed = helper.make_tensor_value_info
    made = {}
    for name, (nodes, arrays) in products(weight, "given").items():
        step = [
            *nodes,
            helper.make_node("Split", ["y"], ["y0", "y1", "y2"], axis=1, num_outputs=3),
            helper.make_node("Tanh", ["y0"], ["new"]),
            helper.make_node("Identity", ["new"], ["out"]),
        ]
        body = helper.make_graph(
            step,
            "step",
            [typed("x", FLOAT, ["b", hidden]), typed("given", FLOAT, ["b", 3 * hidden])],
            [typed("new", FLOAT, ["b", hidden]), typed("out", FLOAT, ["b", hidden])],
        )
        scan = helper.make_node("Scan", ["h", "xs"], ["final", "ys"], body=body, num_scan_inputs=1)
        ends = [typed("h", FLOAT, ["b", hidden]), typed("xs", FLOAT, ["t", "b", 3 * hidden])]
        made[name] = session(([scan], arrays), ends, [typed("ys", FLOAT, ["t", "b", hidden])])
    return runs(made, feeds)


def tables(batch: int, rows: int, width: int) -> dict[str, Callable[[], Any]]:
    random = np.random.default_rng(0)
    table = random.standard_normal((rows, width)).astype(np.float32)
    (whole, scale), (blocks, scales) = quantised_rows(table), quantised_rows(table, 64)
    count, make = width // 64, helper.make_node
    gather, cast = make("Gather", ["w", "ids"], ["g"]), make("Cast", ["g"], ["f"], to=FLOAT)
    scaled = [gather, cast, make("Gather", ["s", "ids"], ["k"])]
    own = make(
        *("GatherBlockQuantized", ["w", "ids", "s", "z"], ["y"]),
        **{"domain": MICROSOFT, "bits": 8, "block_size": 64, "gather_axis": 0, "quantize_axis": 1},
    )
    shifted = (blocks.reshape(rows, width).astype(np.int16) + 128).astype(np.uint8)
    forms: dict[str, Form] = {
        "float32": ([make("Gather", ["w", "ids"], ["y"])], {"w": table}),
        "float16": ([gather, make("Cast", ["g"], ["y"], to=FLOAT)], {"w": table.astype(np.float16)}),
        "int8": ([*scaled, make("Mul", ["f", "k"], ["y"])], {"w": whole, "s": scale}),
        "int8, blocks": (
            [*scaled, make("Mul", ["f", "k"], ["m"]), make("Reshape", ["m", "shape"], ["y"])],
            {"w": blocks, "s": scales, "shape": np.array([0, 0, width])},
        ),
        "GatherBlockQuantized": (
            [own],
            {"w": shifted, "s": scales.reshape(rows, count), "z": np.full((rows, count), 128, np.uint8)},
        ),
    }
    ends = (
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "t"])],
        [helper.make_tensor_value_info("y", FLOAT, ["b", "t", width])],
    )
    made = {name: session(form, *ends) for name, form in forms.items()}
    return runs(made, *({"ids": random.integers(0, rows, (batch, STEPS))} for _ in range(100)))


def runs(
    sessions: Mapping[str, onnxruntime.InferenceSession], *feeds: Mapping[str, Array]
) -> dict[str, Callable[[], Any]]:
    """Functions that run a session on the next of `feeds`; several keep what is read out of the caches."""

    def run(loaded: onnxruntime.InferenceSession, waiting: Iterator[Mapping[str, Array]]) -> Any:
        return loaded.run(None, next(waiting))

    return {name: partial(run, loaded, cycle(feeds)) for name, loaded in sessions.items()}


def told(what: str, forms: Mapping[str, Callable[[], Any]], seconds: float, steps: int = 1) -> None:
    times: list[list[float]] = [[] for _ in forms]
    for run in forms.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 9:
        for found, run in zip(times, forms.values(), strict=True):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
    medians = [median(found) * 1e6 / steps for found in times]
    parts = [f"{name} {own:.1f} ({medians[0] / own:.2f})" for name, own in zip(forms, medians, strict=True)]
    print(f"{what}: {', '.join(parts)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of int8 products and tables in onnxruntime.")
    parser.add_argument("--parts", nargs="+", default=["outside", "inside", "tables"])
    parser.add_argument("--seconds", type=float, default=1.2, help="for each size")
    given = parser.parse_args()
    if "outside" in given.parts:
        for inputs, columns in ((32, 32), (64, 64), (128, 128), (128, 512), (256, 768), (512, 2048)):
            for rows in (1, 16, 64, 1024):
                told(f"{inputs} x {columns}, {rows} rows", outside(rows, inputs, columns), given.seconds)
    if "inside" in given.parts:
        for hidden in (32, 64, 128, 256, 512):
            for rows in (1, 16):
                forms = inside(rows, hidden)
                told(f"in a body, {hidden} x {3 * hidden}, {rows} rows", forms, given.seconds, STEPS)
    if "tables" in given.parts:
        for batch in (1, 16):
            told(f"table 30000 x 1024, {batch} x {STEPS} tokens", tables(batch, 30_000, 1024), given.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
