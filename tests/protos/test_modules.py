"""The generated modules are up to date, and share a process with other clients of the protocol."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "protos"


def test_regenerating_the_modules_changes_nothing(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    written = module.generate(tmp_path)
    assert len(written) == 10
    for path in written:
        assert path.read_text() == (FOLDER / path.name).read_text()


@pytest.mark.parametrize(
    "imports",
    [
        "import tritonclient.grpc; import cellport.protos.inference_pb2",
        "import cellport.protos.inference_pb2; import tritonclient.grpc",
    ],
)
def test_tritonclient_can_be_imported_before_and_after_cellport(imports: str) -> None:
    code = f"""{imports}
from tritonclient.grpc import service_pb2 as theirs
from cellport.protos import inference_pb2 as ours
sent = theirs.ModelInferRequest(model_name="m", raw_input_contents=[b"ab"])
assert ours.ModelInferRequest.FromString(sent.SerializeToString()).raw_input_contents == [b"ab"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
