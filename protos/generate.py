"""Regenerate the message modules from the `.proto` files: `python protos/generate.py`."""

import re
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = ("model_config", "inference", "onnx_tensors", "sequences", "statistics")


def _edit(text: str) -> str:
    """Put a generated module into cellport's own pool.

    The check of protobuf's version goes: it would refuse every protobuf older than the compiler's, and these modules
    hold nothing but serialised descriptors and calls of the builder, which older versions read as well.
    """
    text, validations = re.subn(
        r"_runtime_version\.ValidateProtobufRuntimeVersion\(\n.*?\n\)\n", "", text, flags=re.DOTALL
    )
    text = text.replace("from google.protobuf import runtime_version as _runtime_version\n", "")
    text = text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool\n", "from .pool import POOL as _POOL\n"
    )
    text, pools = re.subn(r"_descriptor_pool\.Default\(\)", "_POOL", text)
    if validations != 1 or pools != 1:
        raise SystemExit(
            f"unexpected code from protoc: {validations} version checks and {pools} pools; 1 and 1 expected"
        )
    return text


def _type(text: str) -> str:
    """Give a stub's mappings the arguments that a strict type check asks for."""
    return text.replace("_Mapping]", "_Mapping[str, object]]")


def generate(target: Path) -> list[Path]:
    """Write the modules and their type stubs into `target`; return their paths."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    written = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in SOURCES:
            # The virtual path makes the modules import each other as cellport.protos.
            status = protoc.main(
                [
                    "protoc",
                    f"--proto_path=cellport/protos={FOLDER}",
                    f"--python_out={temporary}",
                    f"--pyi_out={temporary}",
                    f"cellport/protos/{name}.proto",
                ]
            )
            if status != 0:
                raise SystemExit(f"protoc failed with status {status}")
        for name in SOURCES:
            for ending in ("py", "pyi"):
                text = (Path(temporary) / "cellport" / "protos" / f"{name}_pb2.{ending}").read_text(encoding="utf-8")
                path = target / f"{name}_pb2.{ending}"
                path.write_text(_edit(text) if ending == "py" else _type(text), encoding="utf-8")
                written.append(path)
    return written


if __name__ == "__main__":
    for each in generate(FOLDER):
        sys.stdout.write(f"{each}\n")
