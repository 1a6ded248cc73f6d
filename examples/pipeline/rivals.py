"""What one writes without the engine: a loop over onnxruntime, and padded batches."""

from pathlib import Path

import numpy as np
import onnxruntime

from examples.language_id.data import Ids, pad

from .pipeline import Array


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """Return a session of one thread: with two, every way here took longer on two cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def one_by_one(session: onnxruntime.InferenceSession, texts: list[Ids]) -> Array:
    """The scores [texts, languages] of runs of one text each."""
    found = [session.run(["answer"], {"tokens": ids[None], "lengths": np.array([len(ids)])})[0] for ids in texts]
    return np.concatenate(found)


def padded(session: onnxruntime.InferenceSession, texts: list[Ids], rows: int) -> Array:
    """The scores of batches of texts as they come, each as long as its longest."""
    found = []
    for start in range(0, len(texts), rows):
        tokens, lengths = pad(texts[start : start + rows])
        found.append(session.run(["answer"], {"tokens": tokens, "lengths": lengths})[0])
    return np.concatenate(found)


def sorted_and_padded(session: onnxruntime.InferenceSession, texts: list[Ids], rows: int) -> Array:
    """The same of texts in the order of their lengths, which can only begin when the last text is there."""
    order = np.argsort([len(ids) for ids in texts], kind="stable")
    found = padded(session, [texts[k] for k in order], rows)
    return found[np.argsort(order)]
