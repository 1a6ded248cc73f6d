"""The examples of docs/serving.md and docs/sequences.md run as they are printed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellport.serve import Server
from cellport.serve.commands import _as_text

from . import models

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE + (DOCS / "sequences.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(models.save_lstm(tmp_path_factory.mktemp("docs") / "tagger.onnx"), port=0) as server:
        yield server


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(tagger: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    models.save_lstm(tmp_path / "tagger.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number].replace("127.0.0.1:8001", tagger.address), "docs", "exec"), {})


def test_the_page_shows_what_serve_prints(tagger: Server) -> None:
    for line in _as_text(tagger).splitlines()[:-1]:
        assert f"    {line}\n" in PAGE
