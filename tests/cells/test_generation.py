"""Greedy decoding and beam search do what a plain loop over one row and its hypotheses does in float64."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cellport.cells import CellError, GRUCell, beam_search, greedy

START, END = 1, 2


class Memory(NamedTuple):
    h: Tensor
    seen: Tensor


class Decoder:
    """A small random decoder, its step for PyTorch and for one row in NumPy."""

    def __init__(self, vocabulary: int, seed: int, sharpness: float = 3.0) -> None:
        rng = np.random.default_rng(seed)
        self.vocabulary = vocabulary
        self.rows, self.hidden, self.out = (
            rng.standard_normal(shape) for shape in ((vocabulary, 5), (5, 5), (5, vocabulary))
        )
        self.out *= sharpness
        self.calls = 0

    def step(self, state: Memory, tokens: Tensor, *context: Tensor) -> tuple[Memory, Tensor]:
        self.calls += 1
        h = torch.tanh(torch.from_numpy(self.rows)[tokens] + state.h @ torch.from_numpy(self.hidden))
        logits = h @ torch.from_numpy(self.out)
        for each in context:
            logits = logits + each
        return Memory(h, state.seen + 1), logits

    def one(self, h: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray]:
        h = np.tanh(self.rows[token] + h @ self.hidden)
        logits = h @ self.out
        return h, logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    def greedy(self, h: np.ndarray, most: int) -> tuple[list[int], np.ndarray]:
        tokens: list[int] = []
        while len(tokens) < most:
            h, logits = self.one(h, tokens[-1] if tokens else START)
            if logits.argmax() == END:
                break
            tokens.append(int(logits.argmax()))
        return tokens, h

    def beams(self, h: np.ndarray, beams: int, most: int, alpha: float) -> list[tuple[float, list[int]]]:
        """Beam search over lists to the very last step, without any rule for stopping early."""
        live, ended = [(0.0, [], h)], []
        for count in range(1, most + 1):
            following = []
            for likelihood, tokens, before in live:
                after, logits = self.one(before, tokens[-1] if tokens else START)
                for token, value in enumerate(logits):
                    if token == END:
                        ended.append(((likelihood + value) / ((5 + count) / 6) ** alpha, tokens))
                    else:
                        following.append((likelihood + value, [*tokens, token], after))
            live = sorted(following, key=lambda each: -each[0])[:beams]
        ended += [(likelihood / ((5 + most) / 6) ** alpha, tokens) for likelihood, tokens, _ in live if most]
        return sorted(ended, key=lambda each: -each[0])[:beams]

    def every(self, h: np.ndarray, most: int, alpha: float) -> list[tuple[float, list[int]]]:
        """Every sequence that ends within `most` tokens or is cut there."""
        words = [each for each in range(self.vocabulary) if each != END]
        found = []
        for count in range(most + 1):
            for tokens in itertools.product(words, repeat=count):
                state, total, last = h, 0.0, START
                for token in [*tokens, *([END] if count < most else [])]:
                    state, logits = self.one(state, last)
                    total, last = total + logits[token], token
                found.append((total / ((5 + min(count + 1, most)) / 6) ** alpha, list(tokens)))
        return sorted(found, key=lambda each: -each[0])


def memory(batch: int, seed: int) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    return Memory(h, torch.zeros(batch, 1, dtype=torch.int64))


def rows_of(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    """The tokens of each row; what follows them must be the end token."""
    found = []
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        assert set(row[length:]) <= {END}
        assert END not in row[:length]
        found.append(row[:length])
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_greedy_takes_each_rows_likeliest_token_until_it_ends(seed, batch, most, limited):
    decoder, state = Decoder(6, seed), memory(batch, seed)
    limits = torch.arange(batch) * 2 if limited else None
    tokens, lengths, final = greedy(decoder.step, state, START, end=END, max_steps=most, limits=limits)
    assert tokens.shape == (batch, most)
    for row, found in enumerate(rows_of(tokens, lengths)):
        limit = most if limits is None else min(most, int(limits[row]))
        wanted, h = decoder.greedy(state.h[row].numpy(), limit)
        assert found == wanted
        np.testing.assert_allclose(final.h[row].numpy(), h, atol=1e-12)
        assert int(final.seen[row]) == min(limit, len(wanted) + 1)


def test_greedy_stops_at_the_step_at_which_the_last_row_ends():
    decoder, state = Decoder(6, 3), memory(4, 3)
    _, lengths, _ = greedy(decoder.step, state, START, end=END, max_steps=500)
    assert 0 < int(lengths.max()) < 500
    assert decoder.calls == int(lengths.max()) + 1


def test_a_row_that_ends_at_once_is_empty_and_one_that_never_ends_is_cut():
    decoder, state = Decoder(6, 0), memory(2, 0)
    never = torch.zeros(2, 6, dtype=torch.float64)
    never[0, END], never[1, END] = 1e9, -1e9
    tokens, lengths, _ = greedy(decoder.step, state, START, end=END, max_steps=7, context=(never,))
    assert lengths.tolist() == [0, 7]
    assert tokens[0].tolist() == [END] * 7
    assert END not in tokens[1].tolist()


def test_each_row_can_start_with_a_token_of_its_own():
    decoder, state = Decoder(6, 4), memory(3, 4)
    tokens, _, _ = greedy(decoder.step, state, torch.tensor([0, 1, 3]), end=END, max_steps=6)
    for row, start in enumerate((0, 1, 3)):
        alone = Memory(*(leaf[row : row + 1] for leaf in state))
        assert tokens[row].tolist() == greedy(decoder.step, alone, start, end=END, max_steps=6)[0][0].tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.6, 1.0, 2.5]),
    st.booleans(),
)
def test_beam_search_keeps_the_hypotheses_of_a_search_that_never_stops_early(seed, batch, beams, most, alpha, limited):
    decoder, state = Decoder(6, seed), memory(batch, seed)
    limits = torch.arange(batch) * 3 if limited else None
    tokens, scores, lengths = beam_search(
        decoder.step, state, START, end=END, beams=beams, max_steps=most, length_penalty=alpha, limits=limits
    )
    assert tokens.shape == (batch, beams, most)
    for row in range(batch):
        limit = most if limits is None else min(most, int(limits[row]))
        wanted = decoder.beams(state.h[row].numpy(), beams, limit, alpha)
        missing = beams - len(wanted)
        found = rows_of(tokens[row], lengths[row])
        assert found == [each for _, each in wanted] + [[]] * missing
        np.testing.assert_allclose(scores[row].numpy(), [each for each, _ in wanted] + [-np.inf] * missing, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_search_with_beams_for_all_hypotheses_finds_the_best_of_all_sequences(alpha):
    decoder, state = Decoder(4, 5, sharpness=0.7), memory(2, 5)
    tokens, scores, lengths = beam_search(
        decoder.step, state, START, end=END, beams=40, max_steps=3, length_penalty=alpha
    )
    for row in range(2):
        wanted = decoder.every(state.h[row].numpy(), 3, alpha)
        assert rows_of(tokens[row], lengths[row]) == [each for _, each in wanted]
        np.testing.assert_allclose(scores[row].numpy(), [each for each, _ in wanted], atol=1e-12)


def test_a_greater_length_penalty_favours_longer_hypotheses():
    decoder, state = Decoder(6, 11, sharpness=1.0), memory(16, 11)
    mean = []
    for alpha in (0.0, 1.0, 3.0):
        _, _, lengths = beam_search(decoder.step, state, START, end=END, beams=4, max_steps=10, length_penalty=alpha)
        mean.append(lengths[:, 0].double().mean())
    assert mean[0] < mean[1] < mean[2]


def test_a_search_stops_once_nothing_better_can_come():
    decoder, state = Decoder(6, 3), memory(4, 3)
    beam_search(decoder.step, state, START, end=END, beams=2, max_steps=500)
    assert decoder.calls < 60


def test_every_hypothesis_is_given_its_own_rows_context():
    decoder, state = Decoder(6, 8), memory(3, 8)
    bias = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = beam_search(decoder.step, state, START, end=END, beams=3, max_steps=5, context=(bias,))
    for row in range(3):
        alone = Memory(*(leaf[row : row + 1] for leaf in state))
        one = beam_search(decoder.step, alone, START, end=END, beams=3, max_steps=5, context=(bias[row : row + 1],))
        assert together[0][row].tolist() == one[0][0].tolist()


def test_scores_carry_gradients_in_eager_mode():
    cell, out = GRUCell(4, 4), torch.nn.Linear(4, 5)

    def step(h: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        _, h = cell(torch.nn.functional.one_hot(tokens, 5)[:, :4].float(), h)
        return h, out(h)

    _, scores, _ = beam_search(step, torch.zeros(2, 4), START, end=END, beams=2, max_steps=4)
    scores.sum().backward()
    assert out.weight.grad is not None
    assert out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": -1}, "end is -1; accepted is an integer of at least 0"),
        ({"end": 6}, "end is 6; accepted is 0 to 5, as of logits"),
        ({"max_steps": 0}, "max_steps is 0; accepted is an integer of at least 1"),
        ({"start": torch.zeros(2)}, r"start is torch.float32 \[2\]; accepted are integers \[batch\]"),
        ({"start": torch.tensor([1, 1, 1])}, r"a tensor of shape \[2, 5\] stands beside 3 rows"),
        ({"limits": torch.tensor([1])}, r"a tensor of shape \[1\] stands beside 2 rows"),
        ({"context": (None,)}, "context holds a NoneType; accepted are tensors"),
        ({"state": torch.zeros(())}, "state holds a tensor without axes"),
        ({"state": ()}, "state holds no tensor; accepted is start"),
        ({"step": lambda state, _: (state.h, torch.zeros(2, 6))}, "the step's new state is"),
        ({"step": lambda state, _: (state, torch.zeros(2, dtype=torch.int64))}, r"logits are torch.int64 \[2\]"),
    ],
)
@pytest.mark.parametrize("search", [greedy, beam_search])
def test_what_is_not_accepted_is_named(search, change, message):
    accepted = {"step": Decoder(6, 0).step, "state": memory(2, 0), "start": START, "end": END, "max_steps": 3}
    more = {"beams": 1} if search is beam_search else {}
    arguments = {**accepted, **more, **change}
    with pytest.raises(CellError, match=message):
        search(arguments.pop("step"), arguments.pop("state"), arguments.pop("start"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 0}, "beams is 0; accepted is an integer of at least 1"),
        ({"length_penalty": -1.0}, "length_penalty is -1.0; accepted is a number of at least 0"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; accepted is a finite number"),
    ],
)
def test_what_a_beam_search_does_not_accept_is_named(change, message):
    arguments = {"end": END, "beams": 2, "max_steps": 3, **change}
    with pytest.raises(CellError, match=message):
        beam_search(Decoder(6, 0).step, memory(2, 0), START, **arguments)
