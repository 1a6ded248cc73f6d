"""What a user can rely on: the names of each package, and what importing them costs."""

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "cellport": ["__version__"],
    "cellport.cells": [
        *("GRU", "LSTM", "RNN", "SRU", "CellError", "GRUCell", "LSTMCell", "LSTMState", "RNNCell", "SRUCell"),
        *("LayerNormLSTM", "LayerNormLSTMCell", "SequenceCell", "StepCell", "beam_search", "greedy", "recurrence"),
        *("MDLSTM", "MDLSTMState", "MDRNN", "MDStack"),
        *("GridLSTM", "GridState", "wavefront"),
        *("DAG", "DAGLSTM", "GraphLSTM", "GraphUnion", "TreeLSTM", "dags_of", "level_recurrence", "levels_of"),
        *("neighbours_of", "unite_graphs", "visiting_order"),
    ],
    "cellport.export": ["Examination", "ExportSpec", "Report", "examine", "inspect", "to_onnx", "verify"],
    "cellport.export.passes": [
        *("CleanScans", "FoldConstants", "FoldedTable", "HalfWeights", "Int8Weights", "LookupTables", "LowerRecurrent"),
        *(
            "MoveTransposes",
            "NameTensors",
            "NameWeights",
            "NarrowScans",
            "OptionalInputs",
            "PruneTables",
            "RemoveDead",
            "ReverseScans",
        ),
        *("HoistInvariants", "InferReshapes", "SplitSums"),
        *("SeparateOutputs", "TableTypes", "calibrate", "can_lower", "read_counts"),
    ],
    "cellport.serve": [
        *("AsyncClient", "AsyncEngine", "BatchSettings", "Client", "Engine", "EngineSettings", "Model"),
        *("SequenceSettings", "Server", "ServerSettings", "SessionSettings"),
    ],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_offers_these_names_and_no_others(package: str) -> None:
    """A name that comes or goes is a decision: change this list with it."""
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package])
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", ["cellport.cells", "cellport.export", "cellport.serve"])
def test_a_name_that_a_package_does_not_have_is_an_attribute_error(package: str) -> None:
    """Names that are imported late still fail as Python's do, so that `hasattr` and `from … import` work."""
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def loaded(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import cellport",
        "import cellport.manifest",
        "import cellport.errors",
        "import cellport.cli",
        "import cellport.export",
        "from cellport.serve import Client",
        "from cellport.serve import AsyncClient",
        "import cellport.serve.commands",
    ],
)
def test_what_a_client_imports_needs_neither_torch_nor_onnxruntime(statement: str) -> None:
    assert not loaded(statement) & {"torch", "onnx", "onnxruntime", "onnxscript", "numba"}


def test_what_a_server_imports_needs_no_torch() -> None:
    found = loaded("from cellport.serve import Server, Engine, Model")
    assert "onnxruntime" in found
    assert not found & {"torch", "onnx", "onnxscript"}


def test_cells_import_torch_alone() -> None:
    found = loaded("import cellport.cells")
    assert "torch" in found
    assert not found & {"onnx", "onnxruntime", "onnxscript", "grpc"}


def test_help_of_the_command_line_loads_no_part_of_it() -> None:
    """`cellport --help` answers at once."""
    statement = (
        "import cellport.cli, contextlib\nwith contextlib.suppress(SystemExit): cellport.cli.main(['--version'])"
    )
    assert not loaded(statement) & {"torch", "onnxruntime", "grpc"}
