"""What every sequence cell holds, whatever its options."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .cases import CASES, Case, draw, expected, tensors_of

T, B = 5, 4
LENGTHS = [3, 0, 5, 1]
CHUNKED = [case for case in CASES if not case.options.get("bidirectional")]


def close(actual, wanted, tolerance=1e-12):
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


def all_gradients(cell, input, state, lengths):
    """Gradients of a fixed random loss on outputs and final states, by the input, the state and the parameters."""
    input = input.clone().requires_grad_()
    state = tuple(t.clone().requires_grad_() for t in tensors_of(state))
    output, final = cell(input, cell.pack_state(state), lengths)
    loss = sum((t * torch.arange(t.numel(), dtype=t.dtype).reshape(t.shape).cos()).sum() for t in
               (output, *tensors_of(final)))  # fmt: skip
    wanted = [input, *state, *(p for p in cell.parameters() if p.requires_grad)]
    return torch.autograd.grad(loss, wanted)


def with_padding(input, lengths, value):
    padded = input.clone()
    for b, length in enumerate(lengths):
        padded[length:, b] = value
    return padded


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_output_and_state_are_the_oracles(case: Case, lengths):
    cell = case.build()
    input, state = draw(cell, T, B)
    output, final = cell(input, state, None if lengths is None else torch.tensor(lengths))
    wanted_output, wanted_final = expected(cell, input, state, lengths)
    np.testing.assert_allclose(output.detach().numpy(), wanted_output, rtol=1e-12, atol=1e-12)
    for actual, wanted in zip(tensors_of(final), wanted_final, strict=True):
        np.testing.assert_allclose(actual.detach().numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_float32_stays_within_1e_5_of_the_oracle_over_100_steps(case: Case):
    cell = case.build()
    input, state = draw(cell, 100, 2)
    wanted_output, _ = expected(cell, input, state)
    single = case.build().float()
    output, _ = single(input.float(), cell.pack_state([t.float() for t in tensors_of(state)]))
    np.testing.assert_allclose(output.detach().numpy(), wanted_output, rtol=1e-5, atol=1e-5)


def test_no_state_is_the_initial_state(case: Case):
    cell = case.build()
    input, _ = draw(cell, T, B)
    close(cell(input)[0], cell(input, cell.initial_state(B))[0], 0)


def test_batch_first_turns_input_and_output_and_never_the_state(case: Case):
    cell, turned = case.build(), case.build(batch_first=True)
    input, state = draw(cell, T, B)
    lengths = torch.tensor(LENGTHS)
    output, final = cell(input, state, lengths)
    turned_output, turned_final = turned(input.transpose(0, 1), state, lengths)
    close(turned_output.transpose(0, 1), output)
    close(tensors_of(turned_final), tensors_of(final))


def test_gradients_are_finite_differences(case: Case):
    cell = case.build()
    input, state = draw(cell, 4, 2)
    parameters = {name: p.detach().clone() for name, p in cell.named_parameters() if p.requires_grad}
    tensors = tensors_of(state)
    lengths = torch.tensor([4, 2])

    def run(input, *rest):
        values = dict(zip(parameters, rest[len(tensors) :], strict=True))
        state = cell.pack_state(list(rest[: len(tensors)]))
        output, final = torch.func.functional_call(cell, values, (input, state, lengths))
        return (output, *tensors_of(final))

    arguments = [t.clone().requires_grad_() for t in (input, *tensors, *parameters.values())]
    assert torch.autograd.gradcheck(run, arguments, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=True)


def test_a_sequence_alone_is_the_sequence_in_its_batch(case: Case):
    cell = case.build()
    input, state = draw(cell, T, B)
    lengths = torch.tensor(LENGTHS)
    output, final = cell(input, state, lengths)
    for b in range(B):
        alone = cell.pack_state([t[:, b : b + 1] for t in tensors_of(state)])
        output_b, final_b = cell(input[:, b : b + 1], alone, lengths[b : b + 1])
        close(output_b, output[:, b : b + 1])
        close(tensors_of(final_b), tuple(t[:, b : b + 1] for t in tensors_of(final)))


def test_a_permuted_batch_gives_permuted_results(case: Case):
    cell = case.build()
    input, state = draw(cell, T, B)
    lengths, order = torch.tensor(LENGTHS), torch.tensor([2, 0, 3, 1])
    output, final = cell(input, state, lengths)
    permuted = cell.pack_state([t[:, order] for t in tensors_of(state)])
    output_p, final_p = cell(input[:, order], permuted, lengths[order])
    close(output_p, output[:, order])
    close(tensors_of(final_p), tuple(t[:, order] for t in tensors_of(final)))


def test_nan_in_the_padding_reaches_no_output_state_or_gradient(case: Case):
    cell = case.build()
    input, state = draw(cell, T, B)
    lengths = torch.tensor(LENGTHS)
    clean, dirty = with_padding(input, LENGTHS, 0.0), with_padding(input, LENGTHS, float("nan"))
    output, final = cell(clean, state, lengths)
    dirty_output, dirty_final = cell(dirty, state, lengths)
    close(dirty_output, output, 0)
    close(tensors_of(dirty_final), tensors_of(final), 0)
    close(all_gradients(cell, dirty, state, lengths), all_gradients(cell, clean, state, lengths), 0)


def test_a_padded_sequence_is_the_unpadded_one(case: Case):
    cell = case.build()
    input, state = draw(cell, T, B)
    output, final = cell(with_padding(input, LENGTHS, float("nan")), state, torch.tensor(LENGTHS))
    for b, length in enumerate(LENGTHS):
        alone = cell.pack_state([t[:, b : b + 1] for t in tensors_of(state)])
        output_b, final_b = cell(input[:length, b : b + 1], alone)
        close(output[:length, b : b + 1], output_b)
        assert not output[length:, b].any()
        close(tuple(t[:, b : b + 1] for t in tensors_of(final)), tensors_of(final_b))


def test_gradients_of_a_padded_sequence_are_those_of_the_unpadded_one(case: Case):
    cell = case.build()
    input, state = draw(cell, T, 1)
    padded = torch.cat([input, torch.full_like(input, float("nan"))])
    _, *grads = all_gradients(cell, padded, state, torch.tensor([T]))
    _, *wanted = all_gradients(cell, input, state, None)
    count = len(tensors_of(state))
    # The loss weighs output and final state by position; both are the same for the first T steps of a batch of one.
    close(grads[:count], wanted[:count])
    close(grads[count:], wanted[count:])


def test_a_negative_length_is_the_whole_time_axis(case: Case):
    cell = case.build()
    input, state = draw(cell, T, B)
    mixed = cell(input, state, torch.tensor([-1, 2, -7, 5], dtype=torch.int32))
    spelled = cell(input, state, torch.tensor([5, 2, 5, 5]))
    close(mixed[0], spelled[0], 0)
    close(tensors_of(mixed[1]), tensors_of(spelled[1]), 0)
    close(cell(input, state, torch.full((B,), -1))[0], cell(input, state)[0])


def test_a_sequence_of_length_0_keeps_its_initial_state(case: Case):
    cell = case.build()
    input, state = draw(cell, T, B)
    output, final = cell(torch.full_like(input, float("nan")), state, torch.zeros(B, dtype=torch.int64))
    assert not output.any()
    close(tensors_of(final), tensors_of(state), 0)


def test_no_steps_and_no_sequences_give_empty_outputs(case: Case):
    cell = case.build()
    input, state = draw(cell, 0, B)
    output, final = cell(input, state)
    assert output.shape == (0, B, cell.output_size)
    close(tensors_of(final), tensors_of(state), 0)
    input, state = draw(cell, T, 0)
    assert cell(input, state, torch.zeros(0, dtype=torch.int64))[0].shape == (T, 0, cell.output_size)


def test_one_step_of_one_sequence_is_the_oracles(case: Case):
    cell = case.build()
    input, state = draw(cell, 1, 1)
    np.testing.assert_allclose(
        cell(input, state)[0].detach().numpy(), expected(cell, input, state)[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("chunked", CHUNKED, ids=lambda case: case.name)
def test_step_by_step_is_the_whole_sequence(chunked: Case):
    cell = chunked.build()
    input, state = draw(cell, T, B)
    output, final = cell(input, state)
    for t in range(T):
        piece, state = cell(input[t : t + 1], state)
        close(piece, output[t : t + 1])
    close(tensors_of(state), tensors_of(final))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_sequence_split_anywhere_is_the_whole_sequence(data):
    cell = data.draw(st.sampled_from(CHUNKED)).build(seed=data.draw(st.integers(0, 9)))
    steps, batch = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 3))
    cut = data.draw(st.integers(0, steps))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))
    input, state = draw(cell, steps, batch)
    output, final = cell(input, state, lengths)
    first, state = cell(input[:cut], state, lengths.clamp(max=cut))
    second, state = cell(input[cut:], state, (lengths - cut).clamp(min=0))
    close(torch.cat([first, second]), output)
    close(tensors_of(state), tensors_of(final))


@pytest.mark.parametrize(
    "name",
    [
        "rnn-tanh",
        "lstm",
        "lstm-projected",
        "lstm-peephole",
        "lstm-layer-norm",
        "gru",
        "gru-reset-before",
        "sru-v2",
        "sru-v1",
    ],
)
def test_two_directions_are_a_forward_run_and_a_run_on_the_flipped_input(name):
    both = next(case for case in CASES if case.name == f"{name}-bidirectional").build()
    single = next(case for case in CASES if case.name == name)
    input, _ = draw(both, T, B)
    output = both(input)[0]
    half = output.shape[-1] // 2
    for d, flipped in ((0, False), (1, True)):
        cell = single.build()
        cell.load_state_dict(one_direction(both.state_dict(), d))
        alone = cell(input.flip(0) if flipped else input)[0]
        close(alone.flip(0) if flipped else alone, output[..., d * half : (d + 1) * half])


def one_direction(state_dict, d):
    """A unidirectional cell's state_dict out of a bidirectional one's."""
    if any(key.startswith("rnn_lst") for key in state_dict):
        weight, weight_c, bias, scale = (
            state_dict[f"rnn_lst.0.{k}"] for k in ("weight", "weight_c", "bias", "scale_x")
        )
        return {
            "rnn_lst.0.weight": weight.chunk(2, 1)[d],
            "rnn_lst.0.weight_c": weight_c.view(2, 2, -1)[:, d].reshape(-1),
            "rnn_lst.0.bias": bias.view(2, 2, -1)[:, d].reshape(-1),
            "rnn_lst.0.scale_x": scale,
        }
    names = [key for key in state_dict if key.endswith("_reverse") == bool(d)]
    return {key.removesuffix("_reverse"): state_dict[key] for key in names}
