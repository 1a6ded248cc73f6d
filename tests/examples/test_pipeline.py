"""The example of a pipeline: bounded, in order, and with the answers of one request each."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cellport.export import to_onnx
from cellport.serve import AsyncEngine, Engine
from examples.language_id.data import CODES, Ids, Vocabulary, encode
from examples.language_id.model import LanguageIdentifier, factory
from examples.pipeline import documents, rivals
from examples.pipeline.pipeline import answers, follow, in_order

pytestmark = pytest.mark.usefixtures("one_thread")


class Work:
    """Work that takes longer the later it is, and counts how much of it has begun and is not done."""

    def __init__(self) -> None:
        self.taken = self.now = self.most = 0

    def items(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.taken += 1
            yield number

    async def __call__(self, number: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(7 - number % 7):
                await asyncio.sleep(0)
            if number == 40:
                raise ValueError("the fortieth")
            return number
        finally:
            self.now -= 1


async def test_results_come_in_the_order_of_the_items_and_no_more_than_the_limit_are_begun() -> None:
    work = Work()
    found = []
    async for each in in_order(work.items(40), work, 6):
        found.append(each)
        assert work.taken <= len(found) + 6
    assert found == [*range(40)]
    assert (work.most, work.now) == (6, 0)


async def test_an_item_that_fails_ends_the_pipeline_and_what_has_begun_is_cancelled() -> None:
    work = Work()
    results = in_order(work.items(100), work, 6)
    assert [await anext(results) for _ in range(40)] == [*range(40)]
    with pytest.raises(ValueError, match="the fortieth"):
        await anext(results)
    assert work.now == 0
    assert work.taken <= 47


async def test_a_pipeline_that_is_left_leaves_nothing_running() -> None:
    work = Work()
    results = in_order(work.items(100), work, 6)
    assert await anext(results) == 0
    await results.aclose()
    assert work.now == 0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small identifier that has learned nothing."""
    torch.manual_seed(0)
    path, spec = tmp_path_factory.mktemp("pipeline") / "identifier.onnx", factory()
    to_onnx(
        LanguageIdentifier(embedding=8, hidden=16).eval(),
        spec.args,
        path,
        input_names=spec.input_names,
        output_names=spec.output_names,
        dynamic_shapes=spec.dynamic_shapes,
        lowering="native",
        verify=False,
    )
    return path


@pytest.fixture(scope="module")
def texts() -> list[Ids]:
    return [encode(each.text) for each, _ in zip(documents.paragraphs(), range(60), strict=False)]


def test_every_way_answers_the_same(path: Path, texts: list[Ids]) -> None:
    session = rivals.session_of(path)
    expected = rivals.one_by_one(session, texts)
    np.testing.assert_allclose(rivals.padded(session, texts, 8), expected, atol=1e-6)
    np.testing.assert_allclose(rivals.sorted_and_padded(session, texts, 8), expected, atol=1e-6)

    async def collect() -> list[np.ndarray]:
        async with AsyncEngine(path) as engine:
            return [each async for each in answers(engine, "identifier", texts, 16)]

    np.testing.assert_allclose(np.array(asyncio.run(collect())), expected, atol=1e-6)


def test_a_text_that_is_followed_is_answered_after_each_piece_as_in_one_run(path: Path, texts: list[Ids]) -> None:
    whole = max(texts, key=len)[:200]
    cuts = [0, 1, 2, 50, 60, 199, 200]
    session = onnxruntime.InferenceSession(path)
    [expected] = session.run(["guesses"], {"tokens": whole[None], "lengths": np.array([len(whole)])})
    with Engine(path) as engine:
        pieces = (whole[a:b] for a, b in itertools.pairwise(cuts))
        found = [*follow(engine, "identifier", pieces)]
        np.testing.assert_allclose(found, expected[0, np.array(cuts[1:]) - 1], atol=1e-6)
        left = follow(engine, "identifier", iter([whole]))
        next(left)
        assert engine.repository.get("identifier").slots.used == 1
        left.close()
        assert engine.repository.get("identifier").slots.used == 0


def test_documents_are_of_many_lengths_and_their_words_of_their_language() -> None:
    found = [each for each, _ in zip(documents.paragraphs(), range(300), strict=False)]
    assert found == [each for each, _ in zip(documents.paragraphs(), range(300), strict=False)]
    assert len({len(each.text) for each in found}) > 100
    vocabularies = [Vocabulary.of({f"{code}a": 1.0, f"{code}b": 3.0}) for code in CODES]
    for each in documents.drawn(vocabularies, 50, np.random.default_rng(0)):
        assert each.language is not None
        assert {word[:2] for word in each.text.split()} == {each.language}
