"""One ONNX file in onnxruntime, bound by its manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime

from cellport.errors import InternalServingError, InvalidRequestError, ManifestError, ModelLoadError
from cellport.manifest import BATCH, METADATA_KEY, TIME, Axes, InputSpec, Manifest, OutputSpec

from .arena import Arena
from .codec import Array
from .contract import Contract
from .costs import CostModel
from .external_data import check_external_data
from .settings import SessionSettings
from .slots import Slots
from .statistics import Counters
from .status import log_id
from .trial import try_out

SIDE_CAR = "manifest.json"

_ORT_TYPES = {
    "tensor(bool)": "bool",
    "tensor(string)": "string",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Model:
    """A model that can be run.

    Args:
        session: onnxruntime's session.
        manifest: what the file says of itself.
        name: the name that requests use.
        version: its version, a decimal number.

    Attributes:
        contract: the checks that the manifest implies.
        required: names of the inputs that the graph has no default for.
        arena: the states that requests and sequences have between their runs.
        slots: which places of the arena are taken.
        costs: what a run takes.
        statistics: what it has done for requests.
        single: there is to be one brief run of it at a time; said anew with every request.

    Raises:
        ModelLoadError: the manifest does not fit the graph.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, manifest: Manifest, *, name: str = "model", version: str = "1"
    ) -> None:
        self.name = name
        self.version = version
        self.manifest = manifest
        self.contract = Contract(manifest)
        self.required = frozenset(each.name for each in session.get_inputs())
        self.arena = Arena(self.contract.states)
        self.slots = Slots()
        self.costs = CostModel()
        self.statistics = Counters()
        self.single = False
        self._session = session
        self._strings = frozenset(each.name for each in manifest.inputs if each.dtype == "string")
        _check(session, manifest, f"model {name!r} version {version}")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        name: str = "model",
        version: str = "1",
        settings: SessionSettings | None = None,
    ) -> Self:
        """Load a file.

        The manifest is the file's own, or else a ``<file's stem>.manifest.json`` or ``manifest.json`` beside it, or
        else derived from the graph, which then is served as a model without states. What one beside the file says is
        tried out.

        Raises:
            ModelLoadError: onnxruntime refuses the file, its manifest is wrong, or it keeps tensors outside its folder.
        """
        path = Path(path)
        settings = settings or SessionSettings()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if settings.threads is None else settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Plans of memory are kept for every size that a run ever had, of which rows and steps of chunks have thousands.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spin)))
        if not path.is_file():
            raise ModelLoadError(f"{path} is not a file; accepted: an ONNX file")
        check_external_data(path)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no narrower base class
            raise ModelLoadError(f"{path} cannot be loaded: {error}") from error
        beside = _find_side_car(session, path)
        try:
            if beside is None:
                return cls(session, _own_manifest(session), name=name, version=version)
            model = cls(session, _read_side_car(beside), name=name, version=version)
            try_out(session, model.manifest)
            return model
        except ManifestError as error:
            where = f" in {beside}" if beside is not None else ""
            raise ModelLoadError(f"{path} has a manifest{where} that cannot be used: {error}") from error

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str]) -> dict[str, Array]:
        """Run the graph once.

        Args:
            feeds: tensors by input name, with the axes that the graph has.
            fetches: names of the outputs to return.

        Raises:
            InvalidRequestError: a string is not UTF-8.
            InternalServingError: onnxruntime cannot run these values. Its own words, which may tell of the machine and
                the graph, are in the error's cause only; the id in the message finds them in the log.
        """
        if not fetches:
            return {}
        if self._strings:
            feeds = {name: _to_text(name, each) if name in self._strings else each for name, each in feeds.items()}
        try:
            results = self._session.run(list(fetches), feeds)
        except Exception as error:
            raise InternalServingError(
                f"model {self.name!r} failed to run; the server's log has the reason under {log_id()}"
            ) from error
        return dict(zip(fetches, results, strict=True))

    def free(self, slot: int) -> None:
        """Let go of a place in the arena."""
        self.arena.forget(slot)
        self.slots.give(slot)

    def __repr__(self) -> str:
        return f"<Model {self.name!r} version {self.version}>"


def _to_text(name: str, array: Array) -> Array:
    text = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        try:
            text[index] = value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise InvalidRequestError(
                f"input {name!r} has element {value!r} at {list(index)}; accepted: UTF-8"
            ) from None
    return text


def _find_side_car(session: onnxruntime.InferenceSession, path: Path) -> Path | None:
    """Return the manifest beside a file that has none of its own."""
    if METADATA_KEY in session.get_modelmeta().custom_metadata_map:
        return None
    places = (path.with_name(f"{path.stem}.{SIDE_CAR}"), path.with_name(SIDE_CAR))
    return next((each for each in places if each.is_file()), None)


def _read_side_car(path: Path) -> Manifest:
    try:
        return Manifest.from_file(path)
    except UnicodeDecodeError as error:
        raise ManifestError(f"it is not UTF-8: {error}") from None


def _own_manifest(session: onnxruntime.InferenceSession) -> Manifest:
    metadata = session.get_modelmeta().custom_metadata_map
    return Manifest.from_metadata(metadata) if METADATA_KEY in metadata else derive_manifest(session)


def derive_manifest(session: onnxruntime.InferenceSession) -> Manifest:
    """Return the manifest of a plain file: no states, and a batch axis only where the graph names one.

    A first axis whose symbolic name contains "batch" (or is "N") counts rows. Any other dynamic axis may mean anything,
    and joining requests along it could give wrong answers in silence; such a model runs one request at a time.

    Raises:
        ManifestError: the graph has a tensor that cannot be described.
    """
    inputs = tuple(
        InputSpec(name=each.name, dtype=_dtype(each), axes=_derive_axes(each), role="static")
        # Not the overridable initializers: in old files they are the weights, which nobody means to send.
        for each in session.get_inputs()
    )
    outputs = tuple(
        OutputSpec(name=each.name, dtype=_dtype(each), axes=_derive_axes(each), chunking="last")
        for each in session.get_outputs()
    )
    return Manifest(inputs=inputs, outputs=outputs)


def _derive_axes(node: Any) -> Axes:
    axes: list[int | str] = []
    for position, axis in enumerate(node.shape):
        if isinstance(axis, int):
            axes.append(axis)
        elif position == 0 and isinstance(axis, str) and (BATCH in axis.lower() or axis == "N"):
            axes.append(BATCH)
        else:
            # A symbolic name is kept where it means one size in all tensors; "time" would promise more than we know.
            name = str(axis) if axis not in (None, "", BATCH, TIME) else f"{node.name}.{position}"
            axes.append(name if name not in axes else f"{node.name}.{position}")
    return tuple(axes)


def _dtype(node: Any) -> str:
    if node.type not in _ORT_TYPES:
        raise ManifestError(f"tensor {node.name!r} has type {node.type}; accepted: {', '.join(_ORT_TYPES)}")
    return _ORT_TYPES[node.type]


def _check(session: onnxruntime.InferenceSession, manifest: Manifest, what: str) -> None:
    """Check that the manifest's tensors are the graph's."""
    required = {each.name: each for each in session.get_inputs()}
    optional = {each.name: each for each in session.get_overridable_initializers()}
    outputs = {each.name: each for each in session.get_outputs()}
    inputs = {**optional, **required}
    described: list[tuple[str, str, str, Axes, bool]] = [
        *(("input", each.name, each.dtype, each.axes, each.optional) for each in manifest.inputs),
        *(("input", each.input, each.dtype, each.axes, not each.required) for each in manifest.states),
        *(("output", each.name, each.dtype, each.axes, True) for each in manifest.outputs),
        *(("output", each.output, each.dtype, each.axes, True) for each in manifest.states),
    ]
    for kind, name, dtype, axes, omissible in described:
        nodes = inputs if kind == "input" else outputs
        if name not in nodes:
            raise ModelLoadError(
                f"{what}: the manifest has {kind} {name!r}, the graph has {', '.join(nodes) or 'none'}"
            )
        if _dtype(nodes[name]) != dtype:
            raise ModelLoadError(
                f"{what}: the manifest says {kind} {name!r} is {dtype}, the graph says {_dtype(nodes[name])}"
            )
        if dtype == "bfloat16":
            raise ModelLoadError(
                f"{what}: {kind} {name!r} is bfloat16, which onnxruntime's Python interface does not take"
            )
        if len(nodes[name].shape) != len(axes):
            raise ModelLoadError(
                f"{what}: the manifest says {kind} {name!r} has axes {list(axes)}, the graph says {nodes[name].shape}"
            )
        for position, (size, axis) in enumerate(zip(nodes[name].shape, axes, strict=True)):
            if isinstance(size, int) and size != axis:
                raise ModelLoadError(
                    f"{what}: the manifest says axis {position} of {kind} {name!r} is {axis!r}, the graph says {size}"
                )
        if kind == "input" and omissible and name in required:
            raise ModelLoadError(
                f"{what}: the manifest says input {name!r} is optional, the graph has no default for it"
            )
    missing = sorted(set(required) - {name for kind, name, *_ in described if kind == "input"})
    if missing:
        raise ModelLoadError(f"{what}: the graph has input {missing[0]!r}, which the manifest does not describe")
