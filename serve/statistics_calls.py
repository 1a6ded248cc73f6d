"""The calls that tell what models have done: the protocol's statistics extension, and what this server adds to it."""

from cellport.protos import inference_pb2 as messages
from cellport.protos import statistics_pb2 as own

from .calls import CallContext, Lifecycle
from .engine import Engine
from .statistics import BatchStatistics, Duration, ModelStatistics

RUNS_SERVICE = "cellport.RunStatistics"


class StatisticsCalls:
    """The handlers.

    Args:
        engine: has the models.
        lifecycle: whether calls are taken.
    """

    def __init__(self, engine: Engine, lifecycle: Lifecycle) -> None:
        self._engine = engine
        self._lifecycle = lifecycle

    async def model_statistics(
        self, message: messages.ModelStatisticsRequest, _context: CallContext
    ) -> messages.ModelStatisticsResponse:
        """Answer what models have done, in Triton's terms; an empty name asks for all of them."""
        with self._lifecycle.running():
            found = self._engine.statistics(message.name, message.version)
            return messages.ModelStatisticsResponse(model_stats=map(_write, found))

    async def runs(self, message: own.RunStatisticsRequest, _context: CallContext) -> own.RunStatisticsResponse:
        """Answer what runs had in them, and which states are held."""
        with self._lifecycle.running():
            found = self._engine.statistics(message.model_name, message.model_version)
            return own.RunStatisticsResponse(models=map(_write_runs, found))


def _write(each: ModelStatistics) -> messages.ModelStatistics:
    return messages.ModelStatistics(
        name=each.name,
        version=each.version,
        last_inference=each.last_inference,
        inference_count=each.inference_count,
        execution_count=each.execution_count,
        inference_stats=messages.InferStatistics(
            success=_duration(each.success),
            fail=_duration(each.fail),
            queue=_duration(each.queue),
            compute_input=_duration(each.compute_input),
            compute_infer=_duration(each.compute_infer),
            compute_output=_duration(each.compute_output),
        ),
        batch_stats=map(_batch, each.batches),
    )


def _batch(each: BatchStatistics) -> messages.InferBatchStatistics:
    return messages.InferBatchStatistics(
        batch_size=each.batch_size,
        compute_input=_duration(each.compute_input),
        compute_infer=_duration(each.compute_infer),
        compute_output=_duration(each.compute_output),
    )


def _duration(each: Duration) -> messages.StatisticDuration:
    return messages.StatisticDuration(count=each.count, ns=each.ns)


def _write_runs(each: ModelStatistics) -> own.ModelRunStatistics:
    return own.ModelRunStatistics(
        model_name=each.name,
        model_version=each.version,
        runs=each.execution_count,
        lanes=each.lanes,
        steps=each.steps,
        padding_steps=each.padding_steps,
        chunks=[own.ChunkStatistics(steps=chunk.steps, runs=chunk.runs) for chunk in each.chunks],
        sequences=each.sequences,
        state_bytes=each.state_bytes,
    )
