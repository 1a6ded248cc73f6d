"""The manifest: what a model file says of itself.

An ONNX graph lists tensors. It does not say which output is the next value of which input, which axis is time, whether
the model may be fed piece by piece, or which integers are valid. The manifest does. It is JSON, kept in the file's
metadata under `METADATA_KEY`, and the only thing that the exporter and the server share.

Axis names carry meaning: in every tensor, the axis named ``"batch"`` counts independent rows and the axis named
``"time"`` counts steps. An integer axis has that fixed size; any other name is a dynamic axis of the model's own.
"""

import base64
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from .errors import ManifestError

METADATA_KEY = "cellport.manifest"
VERSION = "1.1"
BATCH = "batch"
TIME = "time"

DTYPES = frozenset(
    [
        *("bool", "string", "float16", "bfloat16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    ]
)
"""Names of element types: NumPy's, and ``bfloat16`` and ``string``."""

Role = Literal["sequence", "static", "lengths", "sizes"]
Chunking = Literal["concatenate", "last"]
Axes = tuple[int | str, ...]


def _check_tensor(what: str, name: str, dtype: str, axes: Axes) -> None:
    if not name:
        raise ManifestError(f"{what} has an empty name")
    if dtype not in DTYPES:
        raise ManifestError(f"{what} {name!r} has dtype {dtype!r}; accepted: {', '.join(sorted(DTYPES))}")
    names = [axis for axis in axes if isinstance(axis, str)]
    if len(set(names)) != len(names):
        raise ManifestError(f"{what} {name!r} has axes {list(axes)}; an axis name may appear once in a tensor")
    for axis in axes:
        if axis == "" or (isinstance(axis, int) and axis < 0):
            raise ManifestError(f"{what} {name!r} has axis {axis!r}; accepted: a name, or a size of at least 0")


@dataclass(frozen=True, kw_only=True)
class Range:
    """The integers that an input accepts, both ends included."""

    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ManifestError(f"range minimum {self.minimum} is above its maximum {self.maximum}")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input that is not a state.

    Attributes:
        name: the graph's input name.
        dtype: element type, one of `DTYPES`.
        axes: a name for each dynamic axis, a size for each fixed one.
        role: ``sequence`` if it has a time axis, ``lengths`` for the number of valid steps of each row (a negative
            length means the whole time axis), ``sizes`` for the size of each row along the axes `of`, else ``static``.
        range: for integer inputs, the values that the graph accepts (such as the vocabulary of an embedding).
        optional: the graph has a default for it, so it may be left out.
        of: of an input of sizes, the axis that each column is a size along. What lies outside of a row's sizes is
            proved not to count, so that rows of different sizes may share a run.
        index_of: the axis whose positions the integers number: 0 to its size less 1, or -1 for none.
        unite: the axis along which the tensors of several requests are put one behind the other. Where all inputs have
            one, a disjoint union of requests is proved to compute what each alone computes: integers that are an
            `index_of` an axis count from where their request's part of it begins, and the other dynamic axes are
            padded to the largest, with -1 in such integers and 0 elsewhere.
    """

    name: str
    dtype: str
    axes: Axes
    role: Role
    range: Range | None = None
    optional: bool = False
    of: tuple[str, ...] = ()
    index_of: str | None = None
    unite: str | None = None

    def __post_init__(self) -> None:
        _check_tensor("input", self.name, self.dtype, self.axes)
        if self.role == "sequence" and TIME not in self.axes:
            raise ManifestError(f"input {self.name!r} has role 'sequence' but no axis {TIME!r}: {list(self.axes)}")
        if self.role == "lengths" and (self.dtype != "int64" or self.axes != (BATCH,)):
            raise ManifestError(f"input {self.name!r} has role 'lengths'; it must be int64 with axes ['batch']")
        if self.role == "sizes" and (self.dtype not in ("int32", "int64") or self.axes != (BATCH, len(self.of))):
            raise ManifestError(
                f"input {self.name!r} has role 'sizes' of {list(self.of)}; it must be integers with axes "
                f"['batch', {len(self.of)}]"
            )
        if self.index_of is not None and self.dtype not in ("int32", "int64"):
            raise ManifestError(
                f"input {self.name!r} numbers positions of {self.index_of!r}; its dtype {self.dtype!r} must be int32 "
                "or int64"
            )
        if self.unite is not None and self.unite not in self.axes:
            raise ManifestError(
                f"input {self.name!r} is united along {self.unite!r}; accepted: one of {list(self.axes)}"
            )


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """One output that is not a state.

    Attributes:
        name: the graph's output name.
        dtype: element type, one of `DTYPES`.
        axes: a name for each dynamic axis, a size for each fixed one.
        chunking: how the outputs of consecutive chunks make the output of the whole sequence: ``concatenate`` over
            the time axis, or keep the ``last`` chunk's.
    """

    name: str
    dtype: str
    axes: Axes
    chunking: Chunking

    def __post_init__(self) -> None:
        _check_tensor("output", self.name, self.dtype, self.axes)
        if self.chunking == "concatenate" and TIME not in self.axes:
            raise ManifestError(f"output {self.name!r} is to be concatenated but has no axis {TIME!r}")


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """One state: an output that is fed back into an input when the sequence goes on.

    Attributes:
        input: name of the graph's input.
        output: name of the graph's output.
        dtype: element type, one of `DTYPES`.
        axes: as of a tensor; the batch axis is wherever ``"batch"`` stands, not always first.
        required: the input has no initial value in the graph, so every run must give it. Otherwise an initializer of
            the input's name holds the initial value with batch size 1, which the graph broadcasts.
        initial: the initial value with batch size 1: row-major little-endian bytes in base64; None for zeros.
    """

    input: str
    output: str
    dtype: str
    axes: Axes
    required: bool = False
    initial: str | None = None

    def __post_init__(self) -> None:
        _check_tensor("state", self.input, self.dtype, self.axes)
        if not self.output:
            raise ManifestError(f"state {self.input!r} has an empty output name")
        if self.dtype in ("string", "bfloat16"):
            raise ManifestError(f"state {self.input!r} has dtype {self.dtype!r}; accepted: NumPy's number types")
        if BATCH not in self.axes:
            raise ManifestError(f"state {self.input!r} has no axis {BATCH!r}: {list(self.axes)}")
        if TIME in self.axes:
            raise ManifestError(f"state {self.input!r} has an axis {TIME!r}; a state has no time axis")
        self.initial_value()

    @property
    def batch_axis(self) -> int:
        """Position of the batch axis."""
        return self.axes.index(BATCH)

    def with_initial(self, value: "np.ndarray[tuple[int, ...], np.dtype[Any]]") -> "StateSpec":
        """Return the same state with the given initial value, of batch size 1; zeros are stored as None."""
        data = np.ascontiguousarray(value, np.dtype(self.dtype).newbyteorder("<")).tobytes()
        initial = base64.b64encode(data).decode() if value.any() else None
        return dataclasses.replace(self, initial=initial)

    def initial_value(self) -> "np.ndarray[tuple[int, ...], np.dtype[Any]]":
        """Return the initial value as an array of `axes` with batch size 1 (and size 1 for other dynamic axes).

        Raises:
            ManifestError: the stored bytes do not fill that shape.
        """
        shape = tuple(axis if isinstance(axis, int) else 1 for axis in self.axes)
        if self.initial is None:
            return np.zeros(shape, self.dtype)
        try:
            data = base64.b64decode(self.initial, validate=True)
            return np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).reshape(shape).astype(self.dtype)
        except ValueError as error:
            raise ManifestError(
                f"initial value of state {self.input!r} does not have shape {list(shape)}: {error}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One lookup table: `vocabulary` rows of `width` values, gathered by token."""

    name: str
    vocabulary: int
    width: int
    dtype: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the file was made from.

    Attributes:
        model: qualified name of the module's class.
        opset: ONNX opset of the graph.
        versions: version of each program that took part, by its distribution name.
        arguments: names of the tensors that the module's forward takes, flattened, in its order.
        results: names of the tensors that forward returns, flattened, in its order.
        structure: how those arguments are put together, as torch's pytree writes it; None if that cannot be written.
        lifted_states: paths of the cells whose state became an input of the graph.
        lifted_lengths: paths of the cells that are given the added lengths.
        weights: element type of weights.
        tables: element type of lookup tables and embeddings.
        pruned: names of the inputs of which tokens that never occur share a row.
    """

    model: str
    opset: int
    versions: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    structure: str | None = None
    lifted_states: tuple[str, ...] = ()
    lifted_lengths: tuple[str, ...] = ()
    weights: str = "float32"
    tables: str = "float32"
    pruned: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing was made smaller, so that the file has to compute what the module computes."""
        return self.weights == self.tables == "float32" and not self.pruned


@dataclass(frozen=True, kw_only=True)
class OutputFigures:
    """The largest absolute errors of one output against the float64 truth, over all cases of a verification."""

    name: str
    onnx_error: float
    torch_error: float
    largest_truth: float


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Figures of the verification that the file passed.

    Attributes:
        cases: number of comparisons.
        outputs: the largest errors of each output.
        second_looks: cases in which PyTorch's own error was measured with neighbouring weights too.
    """

    cases: int
    outputs: tuple[OutputFigures, ...]
    second_looks: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a server or a script has to know of a model file beyond its graph.

    Attributes:
        inputs: inputs that are not states, in the graph's order.
        outputs: outputs that are not states, in the graph's order.
        states: state pairs.
        causal: proved that consecutive chunks with carried states give what one pass gives.
        tables: lookup tables.
        source: what the file was made from.
        verification: figures of the proof, if it was run.
        version: ``major.minor`` of the schema.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    states: tuple[StateSpec, ...] = ()
    causal: bool = False
    tables: tuple[TableSpec, ...] = ()
    source: Source | None = None
    verification: Verification | None = None
    version: str = VERSION

    def __post_init__(self) -> None:
        for what, names in (
            ("input", [each.name for each in self.inputs] + [each.input for each in self.states]),
            ("output", [each.name for each in self.outputs] + [each.output for each in self.states]),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ManifestError(f"{what} name {repeated[0]!r} appears more than once")
        if sum(each.role == "lengths" for each in self.inputs) > 1:
            raise ManifestError("more than one input has role 'lengths'")
        if sum(each.role == "sizes" for each in self.inputs) > 1:
            raise ManifestError("more than one input has role 'sizes'")
        known = {axis for each in self.inputs for axis in each.axes}
        for each in self.inputs:
            if each.index_of is not None and each.index_of not in known:
                raise ManifestError(f"input {each.name!r} numbers positions of {each.index_of!r}, which no input has")

    @property
    def lengths(self) -> InputSpec | None:
        """The input that holds the valid steps of each row, if there is one."""
        return next((each for each in self.inputs if each.role == "lengths"), None)

    @property
    def sizes(self) -> InputSpec | None:
        """The input that holds the sizes of each row, if there is one."""
        return next((each for each in self.inputs if each.role == "sizes"), None)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=indent, sort_keys=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest.

        Fields that this version does not know are ignored.

        Raises:
            ManifestError: the text is not JSON, a field is missing or has the wrong type or value, or the major version
                is not this one's.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"the manifest is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ManifestError(f"the manifest is a JSON {type(value).__name__}; an object is needed")
        version = value.get("version")
        major = VERSION.split(".")[0]
        if not isinstance(version, str) or version.split(".")[0] != major:
            raise ManifestError(f"the manifest has version {version!r}; accepted: {major}.x")
        manifest = _read(cls, value, "manifest")
        assert isinstance(manifest, cls)
        return manifest

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read the manifest out of an ONNX file's metadata.

        Raises:
            ManifestError: there is none, or it is not valid.
        """
        if METADATA_KEY not in metadata:
            raise ManifestError(f"the file has no metadata {METADATA_KEY!r}; was it exported by cellport?")
        return cls.from_json(metadata[METADATA_KEY])

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a manifest from a side-car JSON file."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def _read(kind: Any, value: Any, where: str) -> Any:
    """Convert a parsed JSON `value` to the annotated type `kind`; `where` names the field in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ManifestError(f"{where} is {value!r}; an object is needed")
        assert isinstance(kind, type)
        hints = typing.get_type_hints(kind)
        found = {}
        for each in dataclasses.fields(kind):
            if each.name in value:
                found[each.name] = _read(hints[each.name], value[each.name], f"{where}.{each.name}")
            elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                raise ManifestError(f"{where} has no field {each.name!r}")
        return kind(**found)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [each for each in arguments if each is not type(None)]
        if len(rest) == 1:
            return _read(rest[0], value, where)
        if type(value) in rest:
            return value
    elif origin is Literal:
        if value in arguments:
            return value
        raise ManifestError(f"{where} is {value!r}; accepted: {', '.join(map(repr, arguments))}")
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_read(arguments[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    elif origin is Mapping:
        if isinstance(value, dict):
            return {key: _read(arguments[1], each, f"{where}[{key!r}]") for key, each in value.items()}
    elif kind is float:
        if type(value) in (int, float):
            return float(value)
    elif type(value) is kind:
        return value
    raise ManifestError(f"{where} is {value!r}; its type is wrong")
