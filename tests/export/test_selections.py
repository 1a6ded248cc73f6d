"""How many rows an integer argument selects from is seen in an eager run."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cellport.export.selections import selected_rows

TABLE = torch.zeros(9, 3)


@pytest.mark.parametrize(
    ("run", "rows"),
    [
        (lambda ids: F.embedding(ids, TABLE), 9),
        (lambda ids: F.embedding(ids.T, TABLE), 9),
        (lambda ids: F.embedding(ids.T.contiguous().unsqueeze(0).long(), TABLE), 9),
        (lambda ids: F.embedding(ids, TABLE) + F.embedding(ids[:, :1], TABLE[:4]), 4),
        (lambda ids: TABLE[ids.long()], 9),
        (lambda ids: TABLE[:, ids.long()], 3),
        (lambda ids: TABLE.index_select(0, ids.flatten()), 9),
        (lambda ids: F.embedding(ids + 1, TABLE), None),
        (lambda ids: ids * 2, None),
        (lambda ids: F.embedding(torch.arange(2), TABLE) + ids, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_are_those_of_the_smallest_axis_that_is_selected_from(
    run: Callable[[Tensor], Tensor], rows: int | None, dtype: torch.dtype
) -> None:
    """Through views and copies, and not through arithmetic."""
    assert selected_rows(run, {"ids": torch.zeros(2, 3, dtype=dtype)}).get("ids") == rows


def test_arguments_that_are_one_tensor_are_told_apart() -> None:
    ids = torch.zeros(2, dtype=torch.int64)
    found = selected_rows(lambda a, b: F.embedding(a, TABLE) + F.embedding(b, TABLE[:5]), {"a": ids, "b": ids})
    assert found == {"a": 9, "b": 5}
