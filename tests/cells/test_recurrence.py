"""`recurrence` runs any step function over time, in any structure of tensors, and exports it."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim, export

from cellport.cells import CellError, recurrence

# torch's own tracer, at its first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Pair(NamedTuple):
    h: Tensor
    n: Tensor


class Own(nn.Module):
    """A user's cell: named state, one part of it passed on unchanged, one tensor both state and output."""

    def __init__(self, reverse: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 4).double()
        self.reverse = reverse

    def forward(self, x: Tensor, h: Tensor, lengths: Tensor | None = None) -> tuple[dict[str, Tensor], Pair]:
        def step(state: Pair, inputs: dict[str, Tensor]) -> tuple[Pair, dict[str, Tensor]]:
            h = torch.tanh(self.linear(torch.cat([inputs["x"], state.h], -1)))
            return Pair(h, state.n), {"h": h, "sum": h + state.n}

        return recurrence(step, Pair(h, torch.ones_like(h)), {"x": x}, lengths=lengths, reverse=self.reverse)


def draw(steps, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((steps, batch, 3), (batch, 4)))


def by_hand(module, x, h, lengths):
    weight, bias = module.linear.weight.detach().numpy(), module.linear.bias.detach().numpy()
    outputs, finals = np.zeros((*x.shape[:2], 4)), h.numpy().copy()
    for b, length in enumerate(lengths):
        for t in reversed(range(length)) if module.reverse else range(length):
            finals[b] = np.tanh(weight @ np.concatenate([x[t, b], finals[b]]) + bias)
            outputs[t, b] = finals[b]
    return outputs, finals


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans())
def test_it_is_a_loop_over_each_sequences_own_steps(data, reverse):
    steps, batch = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    module = Own(reverse)
    x, h = draw(steps, batch)
    outputs, final = module(x, h, torch.tensor(lengths))
    wanted, wanted_final = by_hand(module, x, h, lengths)
    np.testing.assert_allclose(outputs["h"].detach().numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(final.h.detach().numpy(), wanted_final, atol=1e-12)
    assert isinstance(final, Pair)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_an_exported_step_function_is_the_eager_one_at_any_batch_and_time(reverse, with_lengths):
    def arguments(steps, batch):
        lengths = torch.tensor([steps, 0, -1, *[1] * batch])[:batch] if with_lengths else None
        return (*draw(steps, batch), lengths)

    module = Own(reverse).eval()
    batch, time = Dim("batch"), Dim("time")
    shapes = ({0: time, 1: batch}, {0: batch}, {0: batch} if with_lengths else None)
    program = export(module, arguments(5, 3), dynamic_shapes=shapes, strict=False).module()
    for steps, size in ((5, 3), (9, 2), (1, 4), (2, 1)):
        torch.testing.assert_close(program(*arguments(steps, size)), module(*arguments(steps, size)))


def test_gradients_pass_through_and_stop_at_the_padding():
    module = Own()
    x, h = draw(5, 2)
    x[3:, 0] = float("nan")
    x.requires_grad_()
    outputs, _ = module(x, h, torch.tensor([3, 5]))
    outputs["h"].sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[3:, 0].any()
    assert module.linear.weight.grad.isfinite().all()


def test_integer_inputs_keep_their_dtype_in_the_padding():
    def step(state: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        assert token.dtype == torch.int64
        return state + token, token

    outputs, final = recurrence(
        step, torch.zeros(2, dtype=torch.int64), torch.full((3, 2), 7), lengths=torch.tensor([1, 2])
    )
    assert outputs.tolist() == [[7, 7], [0, 7], [0, 0]]
    assert final.tolist() == [7, 14]


def test_no_steps_give_an_empty_output_and_the_initial_state():
    x, h = draw(0, 2)
    outputs, final = Own()(x, h, torch.zeros(2, dtype=torch.int64))
    assert outputs["sum"].shape == (0, 2, 4)
    assert torch.equal(final.h, h)


def test_the_step_is_called_once_a_step():
    calls = []

    def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x)
        return state, x

    recurrence(step, torch.zeros(2), torch.zeros(4, 2))
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "inputs hold no tensor; accepted is at least one tensor"),
        (torch.zeros(3), r"has shape \[3\]; accepted is a tensor \[time, batch, ...\]"),
        ((torch.zeros(3, 2), 1.0), "has type float; accepted is a tensor"),
        ((torch.zeros(3, 2), torch.zeros(4, 2)), r"time and batch \[3, 2\] and \[4, 2\]"),
    ],
)
def test_inputs_that_are_no_sequence_are_refused(inputs, message):
    with pytest.raises(CellError, match=message):
        recurrence(lambda state, x: (state, x), torch.zeros(2), inputs)


def test_a_step_that_changes_the_shape_of_its_state_is_refused():
    with pytest.raises(CellError, match=r"new state is .*\[4\].*accepted is what the initial state is, .*\[2\]"):
        recurrence(lambda state, x: (torch.cat([state, x]), x), torch.zeros(2), torch.zeros(3, 2))
