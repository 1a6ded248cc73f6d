"""The examples in docs/cells.md run as they stand."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "cells.md"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own tracer, at its first use
def test_the_examples_of_the_page_run():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})
