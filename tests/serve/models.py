"""Small models that the serving tests run: real ONNX graphs with real manifests, made without torch."""

import base64
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from cellport.manifest import METADATA_KEY, InputSpec, Manifest, OutputSpec, Range, StateSpec

VOCABULARY = 50
HIDDEN = 8
TAGS = 4

# Effective lengths: a negative one means the whole axis. onnxruntime's operators return zeros as the final state of a
# row without steps, where its state must stay what it was.
_LENGTHS = """
    shape = Shape(tokens)
    batch_size = Slice(shape, zero, one)
    steps = Slice(shape, one, two)
    unset = Less(lengths, zero)
    chosen = Where(unset, steps, lengths)
    valid = Expand(chosen, batch_size)
    valid32 = Cast<to = 6>(valid)
    empty = Equal(valid, zero)
    empty_rows = Reshape(empty, column3)
    steps_scalar = Squeeze(steps)
    zero_scalar = Squeeze(zero)
    one_scalar = Squeeze(one)
    positions = Range(zero_scalar, steps_scalar, one_scalar)
    position_row = Reshape(positions, row)
    valid_column = Reshape(valid, column)
    inside = Less(position_row, valid_column)
    inside3 = Unsqueeze(inside, minus_one)
    rows = Gather(table, tokens)
    x = Transpose<perm = [1, 0, 2]>(rows)
    state_shape = Concat<axis = 0>(one, batch_size, hidden_size)
    h_in = Expand(h, state_shape)
"""
_TAIL = """
    h_out = Where(empty_rows, h_in, h_last)
    y_flat = Squeeze(y, one)
    y_batch = Transpose<perm = [1, 0, 2]>(y_flat)
    scores = MatMul(y_batch, projection)
    biased = Add(scores, bias)
    tags = Where(inside3, biased, zero_float)
    final = Squeeze(h_out, zero)
    last_scores = MatMul(final, projection)
    last = Add(last_scores, bias)
"""


def _finish(text: str, weights: dict[str, np.ndarray], manifest: Manifest | None, path: Path) -> Path:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    if manifest is not None:
        model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _weights(gates: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    return {
        "table": draw(VOCABULARY, HIDDEN),
        "W": draw(1, gates * HIDDEN, HIDDEN),
        "R": draw(1, gates * HIDDEN, HIDDEN),
        "B": draw(1, 2 * gates * HIDDEN),
        "projection": draw(HIDDEN, TAGS),
        "bias": draw(TAGS),
        "lengths": np.array([-1], np.int64),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "minus_one": np.array([-1], np.int64),
        "column": np.array([-1, 1], np.int64),
        "row": np.array([1, -1], np.int64),
        "column3": np.array([1, -1, 1], np.int64),
        "hidden_size": np.array([HIDDEN], np.int64),
        "zero_float": np.array(0, np.float32),
    }


def manifest_of_tagger(states: tuple[str, ...]) -> Manifest:
    return Manifest(
        inputs=(
            InputSpec(
                name="tokens",
                dtype="int64",
                axes=("batch", "time"),
                role="sequence",
                range=Range(minimum=0, maximum=VOCABULARY - 1),
            ),
            InputSpec(name="lengths", dtype="int64", axes=("batch",), role="lengths", optional=True),
        ),
        outputs=(
            OutputSpec(name="tags", dtype="float32", axes=("batch", "time", TAGS), chunking="concatenate"),
            OutputSpec(name="last", dtype="float32", axes=("batch", TAGS), chunking="last"),
        ),
        states=tuple(
            StateSpec(input=name, output=f"{name}_out", dtype="float32", axes=(1, "batch", HIDDEN)) for name in states
        ),
        causal=True,
    )


def save_lstm(path: Path, *, causal: bool = True, seed: int = 0, lengths_default: bool = True) -> Path:
    """A tagger: tokens -> embedding -> LSTM -> tags of every step, and of the last; states h and c."""
    text = f"""
<ir_version: 9, opset_import: ["" : 20]>
tagger (int64[batch, time] tokens, int64[lengths_rows] lengths, float[1, h_rows, {HIDDEN}] h,
        float[1, c_rows, {HIDDEN}] c)
    => (float[batch, time, {TAGS}] tags, float[batch, {TAGS}] last, float[1, batch, {HIDDEN}] h_out,
        float[1, batch, {HIDDEN}] c_out)
{{
{_LENGTHS}
    c_in = Expand(c, state_shape)
    y, h_last, c_last = LSTM<hidden_size = {HIDDEN}>(x, W, R, B, valid32, h_in, c_in)
    c_out = Where(empty_rows, c_in, c_last)
{_TAIL}
}}
"""
    weights = _weights(4, seed)
    weights["h"] = np.zeros((1, 1, HIDDEN), np.float32)
    weights["c"] = np.zeros((1, 1, HIDDEN), np.float32)
    manifest = dataclasses.replace(manifest_of_tagger(("h", "c")), causal=causal)
    if not lengths_default:
        del weights["lengths"]
        tokens, lengths = manifest.inputs
        manifest = dataclasses.replace(manifest, inputs=(tokens, dataclasses.replace(lengths, optional=False)))
    return _finish(text, weights, manifest, path)


def save_gru(path: Path, *, seed: int = 1) -> Path:
    """The same with a GRU: one state, whose initial value is learned."""
    text = f"""
<ir_version: 9, opset_import: ["" : 20]>
tagger (int64[batch, time] tokens, int64[lengths_rows] lengths, float[1, h_rows, {HIDDEN}] h)
    => (float[batch, time, {TAGS}] tags, float[batch, {TAGS}] last, float[1, batch, {HIDDEN}] h_out)
{{
{_LENGTHS}
    y, h_last = GRU<hidden_size = {HIDDEN}, linear_before_reset = 1>(x, W, R, B, valid32, h_in)
{_TAIL}
}}
"""
    weights = _weights(3, seed)
    weights["h"] = np.linspace(-1, 1, HIDDEN, dtype=np.float32).reshape(1, 1, HIDDEN)
    manifest = manifest_of_tagger(("h",))
    initial = base64.b64encode(weights["h"].tobytes()).decode()
    manifest = dataclasses.replace(manifest, states=(dataclasses.replace(manifest.states[0], initial=initial),))
    return _finish(text, weights, manifest, path)


def save_affine(path: Path) -> Path:
    """A plain file without a manifest: y = 2 x + 1, rows of three."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
affine (float[batch, 3] x) => (float[batch, 3] y)
{
    doubled = Mul(x, two)
    y = Add(doubled, one)
}
"""
    weights = {"one": np.array(1, np.float32), "two": np.array(2, np.float32)}
    return _finish(text, weights, None, path)


def save_steps(path: Path) -> Path:
    """A model without lengths: the running sum over time, causal, with its total as a required state on axis 0."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
sums (float[batch, time] x, float[batch] total) => (float[batch, time] sums, float[batch] total_out)
{
    partial = CumSum(x, axis)
    column = Unsqueeze(total, axis_one)
    sums = Add(partial, column)
    added = ReduceSum<keepdims = 0>(x, axis_one)
    total_out = Add(added, total)
}
"""
    manifest = Manifest(
        inputs=(InputSpec(name="x", dtype="float32", axes=("batch", "time"), role="sequence"),),
        outputs=(OutputSpec(name="sums", dtype="float32", axes=("batch", "time"), chunking="concatenate"),),
        states=(StateSpec(input="total", output="total_out", dtype="float32", axes=("batch",), required=True),),
        causal=True,
    )
    weights = {"axis": np.array(1, np.int64), "axis_one": np.array([1], np.int64)}
    return _finish(text, weights, manifest, path)


def save_every_type(path: Path) -> Path:
    """An identity of one tensor of each element type that onnxruntime takes."""
    names = {
        "bool": "bool",
        "string": "string",
        "float16": "float16",
        "float32": "float",
        "float64": "double",
        **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    }
    inputs = ", ".join(f"{name}[batch, n] {dtype}" for dtype, name in names.items())
    outputs = ", ".join(f"{name}[batch, n] {dtype}_out" for dtype, name in names.items())
    body = "\n".join(f"{dtype}_out = Identity({dtype})" for dtype in names)
    text = f'<ir_version: 9, opset_import: ["" : 20]>\nevery ({inputs}) => ({outputs})\n{{\n{body}\n}}'
    manifest = Manifest(
        inputs=tuple(InputSpec(name=each, dtype=each, axes=("batch", "n"), role="static") for each in names),
        outputs=tuple(
            OutputSpec(name=f"{each}_out", dtype=each, axes=("batch", "n"), chunking="last") for each in names
        ),
    )
    return _finish(text, {}, manifest, path)


def save_slow(path: Path, *, loops: int) -> Path:
    """A model that takes a while: a loop of matrix products, one row in, its value out."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
slow (float[batch, 1] x) => (float[batch, 1] y)
{
    spread = MatMul(matrix, matrix)
    y0, work = Loop(count, keep_going, x, spread)
        <body = step (int64 i, bool going, float[batch, 1] value, float[256, 256] m)
             => (bool going_out, float[batch, 1] value_out, float[256, 256] m_out)
        {
            going_out = Identity(going)
            value_out = Identity(value)
            product = MatMul(m, m)
            m_out = Mul(product, scale)
        }>
    total = ReduceSum<keepdims = 0>(work)
    nothing = Mul(total, zero)
    y = Add(y0, nothing)
}
"""
    weights = {
        "matrix": np.full((256, 256), 1 / 256, np.float32),
        "scale": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
        "count": np.array(loops, np.int64),
        "keep_going": np.array(True),
    }
    manifest = Manifest(
        inputs=(InputSpec(name="x", dtype="float32", axes=("batch", 1), role="static"),),
        outputs=(OutputSpec(name="y", dtype="float32", axes=("batch", 1), chunking="last"),),
    )
    return _finish(text, weights, manifest, path)


def save_fussy(path: Path) -> Path:
    """A model whose manifest does not know which integers its Gather accepts: 0 to 4."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
fussy (int64[batch, time] tokens) => (float[batch, time] values)
{
    values = Gather(table, tokens)
}
"""
    manifest = Manifest(
        inputs=(InputSpec(name="tokens", dtype="int64", axes=("batch", "time"), role="sequence"),),
        outputs=(OutputSpec(name="values", dtype="float32", axes=("batch", "time"), chunking="concatenate"),),
    )
    return _finish(text, {"table": np.arange(5, dtype=np.float32) * 10}, manifest, path)


def save_reshape(path: Path) -> Path:
    """A model that fails at run time for some shapes: its rows are reshaped to pairs."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
pairs (float[batch, n] x) => (float[rows, 2] y)
{
    y = Reshape(x, pair)
}
"""
    return _finish(text, {"pair": np.array([-1, 2], np.int64)}, None, path)


def save_scale(path: Path) -> Path:
    """Inputs of other kinds: a factor without a batch axis, and an offset that the graph has a default for."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
scale (float[batch, n] x, float factor, float[offset_rows] offset) => (float[batch, n] y)
{
    scaled = Mul(x, factor)
    column = Unsqueeze(offset, one)
    y = Add(scaled, column)
}
"""
    manifest = Manifest(
        inputs=(
            InputSpec(name="x", dtype="float32", axes=("batch", "n"), role="static"),
            InputSpec(name="factor", dtype="float32", axes=(), role="static"),
            InputSpec(name="offset", dtype="float32", axes=("batch",), role="static", optional=True),
        ),
        outputs=(OutputSpec(name="y", dtype="float32", axes=("batch", "n"), chunking="last"),),
    )
    weights = {"offset": np.array([100], np.float32), "one": np.array([1], np.int64)}
    return _finish(text, weights, manifest, path)


def save_time_first(path: Path) -> Path:
    """A graph with time before the batch in every tensor: the running sum over time."""
    text = """
<ir_version: 9, opset_import: ["" : 20]>
sums (float[time, batch, 2] x) => (float[time, batch, 2] y)
{
    y = CumSum(x, axis)
}
"""
    axes = ("time", "batch", 2)
    manifest = Manifest(
        inputs=(InputSpec(name="x", dtype="float32", axes=axes, role="sequence"),),
        outputs=(OutputSpec(name="y", dtype="float32", axes=axes, chunking="concatenate"),),
    )
    return _finish(text, {"axis": np.array(0, np.int64)}, manifest, path)


def save_images(path: Path) -> Path:
    """Sums over images of any size, of what lies inside of each; `sizes` says how much of the axes that is."""
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    images (float[batch, height, width] image, int64[batch, 2] sizes)
    => (float[batch, height, width] sums, float[batch] total) {
        shape = Shape(image)
        zero = Constant<value_int = 0>()
        one = Constant<value_int = 1>()
        two = Constant<value_int = 2>()
        first = Constant<value_ints = [0]>()
        second = Constant<value_ints = [1]>()
        third = Constant<value_ints = [2]>()
        nothing = Constant<value_float = 0.0>()
        height = Gather<axis = 0>(shape, one)
        width = Gather<axis = 0>(shape, two)
        rows = Range(zero, height, one)
        columns = Range(zero, width, one)
        tall = Slice(sizes, first, second, second)
        wide = Slice(sizes, second, third, second)
        row_inside = Less(rows, tall)
        column_inside = Less(columns, wide)
        row_mask = Unsqueeze(row_inside, third)
        column_mask = Unsqueeze(column_inside, second)
        inside = And(row_mask, column_mask)
        seen = Where(inside, image, nothing)
        down = CumSum(seen, one)
        sums = CumSum(down, two)
        both = Constant<value_ints = [1, 2]>()
        total = ReduceSum<keepdims = 0>(seen, both)
    }
    """
    axes = ("batch", "height", "width")
    manifest = Manifest(
        inputs=(
            InputSpec(name="image", dtype="float32", axes=axes, role="static"),
            InputSpec(name="sizes", dtype="int64", axes=("batch", 2), role="sizes", of=("height", "width")),
        ),
        outputs=(
            OutputSpec(name="sums", dtype="float32", axes=axes, chunking="last"),
            OutputSpec(name="total", dtype="float32", axes=("batch",), chunking="last"),
        ),
    )
    return _finish(text, {}, manifest, path)


def save_edges(path: Path) -> Path:
    """What each node has and gets over its edges, and how much of it there is at the roots of each graph."""
    text = """
    <ir_version: 9, opset_import: ["" : 20]>
    edges (float[nodes] x, int64[edges, 2] edge, float[edges] weight, int64[batch] root)
    => (float[nodes] sums, float[batch] at_root) {
        first = Constant<value_ints = [0]>()
        second = Constant<value_ints = [1]>()
        third = Constant<value_ints = [2]>()
        reader = Slice(edge, first, second, second)
        source_column = Slice(edge, second, third, second)
        source = Squeeze(source_column, second)
        given = Gather(x, source)
        weighted = Mul(given, weight)
        sums = ScatterND<reduction = "add">(x, reader, weighted)
        at_root = Gather(sums, root)
    }
    """
    manifest = Manifest(
        inputs=(
            InputSpec(name="x", dtype="float32", axes=("nodes",), role="static", unite="nodes"),
            InputSpec(name="edge", dtype="int64", axes=("edges", 2), role="static", index_of="nodes", unite="edges"),
            InputSpec(name="weight", dtype="float32", axes=("edges",), role="static", unite="edges"),
            InputSpec(name="root", dtype="int64", axes=("batch",), role="static", index_of="nodes", unite="batch"),
        ),
        outputs=(
            OutputSpec(name="sums", dtype="float32", axes=("nodes",), chunking="last"),
            OutputSpec(name="at_root", dtype="float32", axes=("batch",), chunking="last"),
        ),
    )
    return _finish(text, {}, manifest, path)
