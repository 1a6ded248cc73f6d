"""SRUs of the `sru` package, loaded into cellport's, for `benchmarks/exporters.py`."""

import shutil
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from cellport.cells import SRU

OPTIONS: dict[str, dict[str, Any]] = {
    "sru package": {},
    "sru package, bidirectional, layer norm": {"bidirectional": True, "layer_norm": True},
    "sru package, factorised": {"projection_size": 3},
    "sru package, layer norm after, rescaled": {"layer_norm": True, "normalize_after": True, "rescale": True},
    "sru package, version 1, tanh": {"v1": True, "use_tanh": True},
    "sru package, no skip term": {"has_skip_term": False},
}


def sru_models(features: int, hidden: int) -> list[tuple[str, Callable[[], nn.Module]]]:
    """Names and modules; none without g++, which the package needs when it is imported."""
    if shutil.which("g++") is None:
        return []

    def make(options: dict[str, Any]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import sru

            return SRU.from_sru(sru.SRU(features, hidden, 2, **options))

    return [(name, lambda options=options: make(options)) for name, options in OPTIONS.items()]
