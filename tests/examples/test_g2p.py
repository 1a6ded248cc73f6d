"""The example of a trained encoder-decoder: its files spell 2,000 words of cmudict as the NumPy reference does."""

import numpy as np
import onnxruntime
import pytest
import torch

from examples.g2p import data
from examples.g2p.export import Files, export
from examples.g2p.model import Beams
from examples.g2p.reference import Reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("g2p")
    export(folder)
    return folder


@pytest.fixture(scope="module")
def words():
    return data.sample(2000)


@pytest.fixture(scope="module")
def wanted(words):
    reference = Reference(data.weights())
    return [[data.PHONEMES[index] for index in reference.predict(word)] for word in words]


def test_the_sample_holds_what_is_hard(words):
    assert len(set(words)) == 2000
    assert any(not word.isalpha() for word in words)
    assert {4, 12} <= set(map(len, words))


def test_the_loop_spells_every_word_as_the_reference(folder, words, wanted):
    assert list(Files(folder).greedy(words)) == wanted


def test_the_step_graph_spells_every_word_as_the_reference(folder, words, wanted):
    assert list(Files(folder).steps(words)) == wanted


def test_a_word_that_is_cut_at_the_limit_is_spelled_as_the_reference(folder):
    long = ["deinstitutionalizations", "pneumonoultramicroscopicsilicovolcanoconiosis"]
    reference = [[data.PHONEMES[index] for index in Reference(data.weights()).predict(word)] for word in long]
    assert max(map(len, reference)) == data.MOST
    assert list(Files(folder).greedy(long)) == reference


def test_padding_does_not_change_what_the_encoder_reads(folder):
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
    words = ["a", "onomatopoeia", "don't", "queue"]
    (together,) = session.run(["h"], data.batch(words))
    for word, row in zip(words, together, strict=True):
        np.testing.assert_allclose(session.run(["h"], data.batch([word]))[0][0], row, atol=2e-6)


def test_the_beam_file_finds_what_the_float64_module_finds(folder, words):
    session = onnxruntime.InferenceSession(str(folder / "beams.onnx"), providers=["CPUExecutionProvider"])
    inputs = data.batch(words[:200])
    phonemes, scores, count = session.run(["phonemes", "scores", "count"], inputs)
    with torch.no_grad():
        found = Beams(data.weights()).double()(*map(torch.from_numpy, inputs.values()))
    assert phonemes.tolist() == found[0].tolist()
    np.testing.assert_allclose(scores, found[1].numpy(), atol=1e-4)
    assert count.tolist() == found[2].tolist()


def test_beam_search_is_closer_to_the_dictionary_than_greedy(folder, words):
    files = Files(folder)
    right = [
        sum(found in data.dictionary()[word] for word, found in zip(words, spell(words), strict=True))
        for spell in (files.greedy, files.beams)
    ]
    assert right[1] > right[0]
