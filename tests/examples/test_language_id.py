"""The language identifier, small: its data, and the road from training to a served answer."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cellport.export import to_onnx
from cellport.serve import Client, Server
from examples.language_id import data, demo
from examples.language_id.model import LanguageIdentifier, factory
from examples.language_id.sentences import SENTENCES
from examples.language_id.train import predict, step, train


@pytest.fixture(scope="module")
def vocabularies() -> tuple[list[data.Vocabulary], list[data.Vocabulary]]:
    return data.load(words=300)


def test_trigrams_follow_the_typing_and_stay_inside_their_word() -> None:
    assert list(data.trigrams("Où, là?")) == ["  o", " où", "où ", "  l", " là", "là "]
    assert list(data.encode("a b")) == [*data.encode("a"), *data.encode("b")]
    assert list(data.trigrams("1234, ?!")) == ["   "]
    assert len(data.encode("1234, ?!")) == 1


def test_a_bucket_is_the_same_in_every_process() -> None:
    assert data.bucket("  a") == 27294 == data.encode("a")[0]


def test_no_word_is_both_trained_on_and_held_out(
    vocabularies: tuple[list[data.Vocabulary], list[data.Vocabulary]],
) -> None:
    """Not even in another language."""
    training, held_out = ({word for each in part for word in each.words} for part in vocabularies)
    assert not training & held_out
    assert 0.05 < len(held_out) / len(training | held_out) < 0.15


def test_snippets_are_what_their_ids_say(
    vocabularies: tuple[list[data.Vocabulary], list[data.Vocabulary]],
) -> None:
    snippets = data.draw(vocabularies[0], 50, np.random.default_rng(0))
    for ids, length, text in zip(snippets.ids, snippets.lengths, snippets.texts, strict=True):
        np.testing.assert_array_equal(ids[:length], data.encode(text))
        assert 1 <= len(text.split()) <= data.MOST_WORDS
        assert not ids[length:].any()


def test_there_is_a_sentence_for_every_language() -> None:
    assert len(data.CODES) >= 20
    assert set(SENTENCES) == set(data.LANGUAGES)


def test_a_negative_length_means_the_whole_text() -> None:
    """As it does to the cells; the answer is then the guess after the last step."""
    torch.manual_seed(0)
    model = LanguageIdentifier(embedding=4, hidden=8).eval()
    tokens = torch.arange(12).reshape(3, 4)
    with torch.inference_mode():
        guesses, answer = model(tokens, torch.tensor([-1, 4, 2]))
        whole, _ = model(tokens, torch.tensor([4, 4, 4]))
    torch.testing.assert_close(guesses[:2], whole[:2], rtol=0, atol=0)
    torch.testing.assert_close(answer, torch.stack([whole[0, 3], whole[1, 3], whole[2, 1]]), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def trained(
    vocabularies: tuple[list[data.Vocabulary], list[data.Vocabulary]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[LanguageIdentifier, Path]:
    """A model after a few steps of training, and its export with its table."""
    torch.manual_seed(0)
    model = LanguageIdentifier(buckets=data.BUCKETS, embedding=8, hidden=16)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    rng, losses = np.random.default_rng(0), []
    for _ in range(12):
        loss, _ = step(model, data.draw(vocabularies[0], 32, rng, words=3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    spec = factory()
    path = tmp_path_factory.mktemp("trained") / "language_id.onnx"
    report = to_onnx(
        model,
        spec.args,
        path,
        input_names=spec.input_names,
        output_names=spec.output_names,
        dynamic_shapes=spec.dynamic_shapes,
        lookup=True,
    )
    assert report.manifest.causal
    return model, path


def test_the_trained_model_answers_as_it_does_in_pytorch(
    vocabularies: tuple[list[data.Vocabulary], list[data.Vocabulary]], trained: tuple[LanguageIdentifier, Path]
) -> None:
    model, path = trained
    snippets = data.draw(vocabularies[1], 20, np.random.default_rng(1))
    with Server(path, port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
        answers = client.infer("language_id", {"tokens": snippets.ids, "lengths": snippets.lengths}, ["answer"])
        whole = {"tokens": snippets.ids[:1, : snippets.lengths[0]]}
        without_lengths = client.infer("language_id", whole, ["answer"])["answer"]
        with client.sequence("language_id") as stream:
            ids = data.encode(snippets.texts[0])
            guesses = [stream.step({"tokens": [[token]]})["guesses"] for token in ids]
    np.testing.assert_array_equal(answers["answer"].argmax(1), predict(model, snippets))
    np.testing.assert_allclose(without_lengths, answers["answer"][:1], rtol=0, atol=1e-5)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [negative] = session.run(["answer"], {**whole, "lengths": np.array([-1])})
    np.testing.assert_allclose(negative, without_lengths, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.ravel(guesses[-1]), answers["answer"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("text", "last"), [("1234", "(no letters)"), ("", "(no letters)"), ("Où, là?", "où là")])
def test_any_text_can_be_shown_as_it_is_typed(
    trained: tuple[LanguageIdentifier, Path], capsys: pytest.CaptureFixture[str], text: str, last: str
) -> None:
    with Server(trained[1], port=0) as server:
        demo.show_typing(server.address, text)
    assert capsys.readouterr().out.splitlines()[-1].strip().startswith(last)


def test_training_is_the_same_amount_of_work_and_the_same_result_every_time(
    vocabularies: tuple[list[data.Vocabulary], list[data.Vocabulary]],
) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = LanguageIdentifier(embedding=4, hidden=8)
        train(model, vocabularies[0], snippets=70)
        weights.append(model.head.weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)
