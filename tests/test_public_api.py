"""The names that users import."""

import importlib

import pytest

PUBLIC = {
    "cellport": ["__version__"],
    "cellport.cells": [
        *("GRU", "GRUCell", "LSTM", "LSTMCell", "LSTMState", "RNN", "RNNCell", "SRU", "SRUCell"),
        *("CellError", "SequenceCell", "StepCell", "recurrence"),
    ],
    "cellport.export": ["ExportSpec", "Report", "inspect", "to_onnx", "verify"],
    "cellport.serve": [
        *("AsyncClient", "AsyncEngine", "Client", "Engine", "Model", "Server"),
        *("BatchSettings", "EngineSettings", "SequenceSettings", "ServerSettings", "SessionSettings"),
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there_and_no_others(module: str) -> None:
    """A name that is added or removed is a decision, and this list changes with it."""
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__) == sorted(PUBLIC[module])
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None


@pytest.mark.parametrize("module", ["cellport.export", "cellport.serve"])
def test_a_name_that_is_not_there_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        importlib.import_module(module).nothing_of_the_kind  # noqa: B018
