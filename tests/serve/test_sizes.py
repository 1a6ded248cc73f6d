"""Images of different sizes share runs, padded within the set waste, and are answered as if alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from cellport.serve import BatchSettings, Engine, EngineSettings, Model, Server
from cellport.serve.jobs import Job
from cellport.serve.requests import Reply, Request
from cellport.serve.scheduler import Scheduler
from cellport.serve.sequences import SequenceTable
from cellport.serve.settings import SequenceSettings
from cellport.serve.ticks import run_tick

from . import models
from .test_engine import busy
from .wire import triton_input


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    models.save_images(root / "images" / "1" / "model.onnx")
    models.save_slow(root / "slow" / "1" / "model.onnx", loops=300)
    return root


@pytest.fixture(scope="module")
def model(images: Path) -> Model:
    return Model.load(images / "images" / "1" / "model.onnx")


def image_of(height: int, width: int, seed: int, rows: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, height, width)).astype(np.float32)


def check(image: Any, outputs: Any, sizes: Any = None) -> None:
    """Compare with float64 sums, inside of the sizes."""
    for row, each in enumerate(image):
        height, width = each.shape if sizes is None else sizes[row]
        inside = each[:height, :width].astype(np.float64)
        np.testing.assert_allclose(outputs["sums"][row, :height, :width], inside.cumsum(0).cumsum(1), atol=1e-4)
        np.testing.assert_allclose(outputs["total"][row], inside.sum(), atol=1e-4)
    assert outputs["sums"].shape == image.shape


REQUESTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.booleans()), min_size=1, max_size=10
)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.sampled_from([1.0, 1.5, 4.0]))
def test_images_of_any_sizes_are_answered_together_as_alone(model: Model, drawn: list[Any], padding: float) -> None:
    scheduler = Scheduler(BatchSettings(padding=padding), SequenceTable(SequenceSettings()))
    jobs = []
    for number, (rows, height, width, smaller) in enumerate(drawn):
        inputs = {"image": image_of(height, width, number, rows)}
        if smaller:
            inputs["sizes"] = np.random.default_rng(number).integers(0, [height + 1, width + 1], (rows, 2))
        jobs.append((Job(model=model, bound=model.contract.bind(inputs), done=print), inputs))
        scheduler.submit(jobs[-1][0])
    outcomes = {}
    while True:
        tick, _ = scheduler.schedule(0.0)
        if tick is None:
            break
        extents = np.array([part.job.extent for part in tick.parts])
        counts = np.array([part.count for part in tick.parts])
        assert counts.sum() * extents.max(0).prod() <= padding * (counts * extents.prod(1)).sum()
        outcomes.update({each.job: each.outcome for each in scheduler.complete(tick, run_tick(tick), 0.0)})
    for job, inputs in jobs:
        reply = outcomes[job]
        assert isinstance(reply, Reply), reply
        check(inputs["image"], reply.outputs, inputs.get("sizes"))


def test_images_that_wait_share_a_run(images: Path) -> None:
    with Engine(images, EngineSettings(workers=1, batch=BatchSettings(padding=2.0))) as engine:
        given_images = [image_of(8 + number % 3, 9 - number % 2, number) for number in range(12)]
        outcomes: dict[int, Any] = {}
        with busy(engine):
            before = engine.runs
            for number, image in enumerate(given_images):
                request = Request(model="images", inputs={"image": image})
                engine.submit(request, lambda outcome, number=number: outcomes.update({number: outcome}))  # type: ignore[misc]
        engine.infer("images", {"image": given_images[0]})
        for number, image in enumerate(given_images):
            check(image, outcomes[number].outputs)
        assert engine.runs - before <= 3


def test_many_callers_with_images_of_their_own_sizes(images: Path) -> None:
    with Server(images, port=0) as server, ThreadPoolExecutor(16) as pool:
        client = triton_grpc.InferenceServerClient(server.address)

        def call(number: int) -> None:
            image = image_of(1 + number % 17, 1 + number % 11, number)
            answer = client.infer("images", [triton_input("image", image)])
            check(image, {name: answer.as_numpy(name) for name in ("sums", "total")})

        list(pool.map(call, range(64)))
        client.close()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[3, 5]], "input 'sizes' has size 5 for row 0; accepted: 0 to 4, the axis 'width'"),
        ([[-1, 4]], "input 'sizes' has size -1 for row 0; accepted: 0 to 3, the axis 'height'"),
        ([[1, 1], [1, 1]], "axis 'batch' must be 1, as in 'image'"),
        ([[1, 1, 1]], r"has shape \[1, 3\]; accepted: \['batch', 2\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(images: Path, sizes: Any, message: str) -> None:
    with Server(images / "images", port=0) as server:
        client = triton_grpc.InferenceServerClient(server.address)
        with pytest.raises(InferenceServerException, match=message) as error:
            client.infer("images", [triton_input("image", image_of(3, 4, 0)), triton_input("sizes", np.array(sizes))])
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        client.close()
