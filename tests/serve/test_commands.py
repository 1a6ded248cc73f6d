"""`cellport serve` and `cellport infer`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellport.cli import main
from cellport.serve import Client, Server
from cellport.serve.commands import _as_text


def test_infer_prints_the_outputs_for_a_person(server: Server, capsys: Any) -> None:
    assert main(["infer", "affine", "--url", server.address, "--input", "x=[[1, 2, 3]]"]) == 0
    assert capsys.readouterr().out == "y [1, 3]\n[[3. 5. 7.]]\n"


def test_infer_prints_json_of_the_outputs_wanted(server: Server, client: Client, capsys: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text("[[1, 2]]")
    arguments = ["infer", "lstm", "--url", server.address, "--input", f"tokens=@{tokens}", "--output", "last", "--json"]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(
        np.array(printed["last"], np.float32), client.infer("lstm", {"tokens": [[1, 2]]})["last"]
    )


def test_infer_sends_and_prints_text(server: Server, capsys: Any) -> None:
    names = ["bool", "string", "float16", "float32", "float64"]
    names += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    inputs = [f"--input={name}=" + {"bool": "[[true]]", "string": '[["Zoë"]]'}.get(name, "[[1]]") for name in names]
    assert main(["infer", "every", "--url", server.address, "--json", *inputs]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["string_out"] == [["Zoë"]]
    assert printed["bool_out"] == [[True]]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("tokens", 2, "accepted: NAME=JSON"),
        ("words=[1]", 1, "input 'words' is not one of the model's; accepted: 'tokens'"),
        ("tokens=[[1,", 1, "input 'tokens' cannot be read as JSON"),
        ("tokens=@/no/such/file", 1, "No such file"),
        ("tokens=[[1.5]]", 1, "not made of values of INT64"),
        ('tokens=[["a"]]', 1, "input 'tokens' is not an array of INT64"),
        ("tokens=[[1], [2, 3]]", 1, "input 'tokens' is not an array of INT64"),
        ("tokens=[[99]]", 1, "99 at [0, 0]; accepted: 0 to 49"),
    ],
)
def test_infer_says_what_is_wrong_with_an_input(
    server: Server, capsys: Any, text: str, status: int, message: str
) -> None:
    assert main(["infer", "lstm", "--url", server.address, "--input", text]) == status
    assert message in capsys.readouterr().err


def test_serve_lists_each_model_with_its_tensors_and_states_batch_first(server: Server) -> None:
    lines = _as_text(server).splitlines()
    at = lines.index("gru, version 1 (runs sequences)")
    assert lines[at + 1].split() == ["input", "tokens", "int64", "[batch,", "time]", "0", "to", "49"]
    assert lines[at + 5].split() == ["state", "h", "float32", "[batch,", "1,", "8]", "returned", "as", "h_out"]
    assert lines[-1] == f"serving on {server.address}"


def test_serve_refuses_settings_and_paths_that_cannot_be(capsys: Any, tmp_path: Path) -> None:
    assert main(["serve", str(tmp_path), "--batch", "0"]) == 2
    assert "rows is 0; accepted: at least 1" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx does not exist; accepted: an ONNX file" in capsys.readouterr().err


def test_serve_refuses_an_address_in_use(server: Server, folder: Path, capsys: Any) -> None:
    assert main(["serve", str(folder / "affine"), "--port", str(server.port)]) == 1
    assert f"{server.address} cannot be listened on" in capsys.readouterr().err
