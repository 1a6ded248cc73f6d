"""How many runs at a time, and on how many threads, is what was measured to get the most done."""

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from cellport.serve import Engine, EngineSettings, SessionSettings, instances
from cellport.serve.costs import CostModel


class Fake:
    """What is asked of a model here: its costs, and how long a run takes beside others."""

    def __init__(
        self, seconds: float, *, alone: AbstractContextManager[object] | None = None, step: float = 1.0
    ) -> None:
        self.costs = CostModel()
        self.costs.measure(lambda rows, steps: step * steps, timed=True)
        self.seconds = seconds
        self.alone = alone

    def run(self) -> bool:
        if self.alone is None:
            time.sleep(self.seconds)
        else:
            with self.alone:
                time.sleep(self.seconds)
        return True


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = instances.batch_run
    monkeypatch.setattr(instances, "batch_run", lambda model: model.run if isinstance(model, Fake) else real(model))


def test_runs_that_do_not_hinder_each_other_take_place_on_all_processors() -> None:
    assert instances.choose_workers([Fake(0.004)], 4) == 4  # type: ignore[list-item]


def test_runs_that_wait_for_the_same_thing_take_place_one_at_a_time() -> None:
    assert instances.choose_workers([Fake(0.004, alone=threading.Lock())], 4) == 1  # type: ignore[list-item]


def test_of_several_models_the_one_that_gains_least_decides() -> None:
    models = [Fake(0.004), Fake(0.004, alone=threading.Lock())]
    assert instances.choose_workers(models, 4) == 1  # type: ignore[arg-type]


def test_without_a_model_that_can_be_measured_every_processor_gets_a_run() -> None:
    assert instances.choose_workers([], 3) == 3


@pytest.mark.parametrize(
    ("alone", "together", "threads"), [(0.008, 0.001, 2), (0.008, 0.004, 1), (0.008, 0.007, 1)], ids=str
)
def test_a_run_gets_all_processors_only_if_that_is_faster_than_two_runs(
    alone: float, together: float, threads: int
) -> None:
    """Two runs at a time get twice as much done as one, so that one on all processors has to be faster than that."""
    loaded = {1: Fake(alone), 2: Fake(together)}
    found = instances.choose_threads(lambda count: loaded[count], 2)  # type: ignore[arg-type,return-value]
    assert found is loaded[threads]  # type: ignore[comparison-overlap]


def test_a_model_of_short_steps_is_not_loaded_a_second_time() -> None:
    asked = []

    def load(threads: int) -> Fake:
        asked.append(threads)
        return Fake(0.001, step=1e-6)

    instances.choose_threads(load, 2)  # type: ignore[arg-type]
    assert asked == [1]


def test_a_model_that_fails_on_what_is_tried_serves_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "batch_run", lambda _: lambda: False)
    with Engine(folder) as engine:
        assert engine.workers >= 1
        assert engine.infer("lstm", {"tokens": np.array([[1, 2]])})["tags"].shape[:2] == (1, 2)


def test_what_is_asked_for_is_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr("cellport.serve.engine.choose_workers", refuse)
    monkeypatch.setattr("cellport.serve.engine.choose_threads", refuse)
    with Engine(folder, EngineSettings(workers=3, session=SessionSettings(threads=2))) as engine:
        assert engine.workers == 3


def test_the_measurement_of_a_real_model_leaves_its_slots_free(folder: Path) -> None:
    with Engine(folder, EngineSettings(workers=1)) as engine:
        lstm = engine.repository.get("lstm")
    assert instances.choose_workers([lstm], 2) in (1, 2)
    assert lstm.slots.used == 0
