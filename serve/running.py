"""Running a batch: join the members' tensors, run the graph, cut the results; all without a lock or a queue."""

import logging
from collections.abc import Sequence

from cellport.errors import InternalServingError, ServingError

from . import assembly
from .assembly import Answer
from .batcher import Batch, Work
from .model import Model

_log = logging.getLogger(__name__)


def run_batch(batch: Batch) -> list[Answer | Exception]:
    """Run a batch; if that fails, run its members one by one, so that only those that fail alone are refused."""
    try:
        return list(_run_works(batch.model, batch.works))
    except Exception as error:
        if len(batch.works) == 1:
            return [_refusal(batch.model, error)]
    answers: list[Answer | Exception] = []
    for work in batch.works:
        try:
            answers += _run_works(batch.model, [work])
        except Exception as error:
            answers.append(_refusal(batch.model, error))
    return answers


def _run_works(model: Model, works: Sequence[Work]) -> list[Answer]:
    members = [work.member for work in works]
    feeds = assembly.join(model.contract, members, model.required)
    results = model.run(feeds, assembly.fetches(model.contract, members))
    return assembly.split(model.contract, members, results)


def _refusal(model: Model, error: Exception) -> Exception:
    if isinstance(error, ServingError) and not isinstance(error, InternalServingError):
        return error
    _log.error("%r failed to run", model, exc_info=error)
    return error
