"""SRU's compiled loop is the plain recurrence: values, gradients, and what it does where it cannot run."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellport.cells import SRU, sru_elementwise
from cellport.cells.sru_elementwise import ACTIVATIONS, Masks, run_elementwise, run_with_recurrence

needs_numba = pytest.mark.skipif(
    not sru_elementwise.numba_installed(), reason="needs numba (extra `train`), which is not installed"
)


def draw(steps, batch, lanes, dtype=torch.float64, seed=0):
    """u, skip, vectors and c0, each with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (steps, batch, 3, lanes), (steps, batch, lanes), (4, lanes), (batch, lanes)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def results_and_gradients(run, tensors, lengths, **options):
    h, final = run(*tensors, lengths, **options)
    wanted = [t for t in tensors if t is not None]
    weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in (h, final)]
    return h, final, *torch.autograd.grad((h * weights[0]).sum() + (final * weights[1]).sum(), wanted)


@needs_numba
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_compiled_loop_and_its_gradient_are_the_recurrences(data):
    directions = data.draw(st.sampled_from([1, 2]))
    steps, batch, hidden = (data.draw(st.integers(1, top)) for top in (6, 4, 9))
    lengths = data.draw(st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch).map(torch.tensor))
    tensors = draw(steps, batch, directions * hidden)
    if data.draw(st.booleans()):
        tensors[1] = None
    masks = None
    if data.draw(st.booleans()):
        masks = Masks(*torch.rand(2, batch, directions * hidden, dtype=torch.float64))
    options = {"directions": directions, "activation": data.draw(st.sampled_from(ACTIVATIONS)), "masks": masks}
    compiled = results_and_gradients(run_elementwise, tensors, lengths, **options)
    plain = results_and_gradients(run_with_recurrence, tensors, lengths, **options)
    torch.testing.assert_close(compiled, plain, rtol=1e-12, atol=1e-12)


@needs_numba
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_is_as_close_to_float64_as_torchs_own_operators_are(activation):
    tensors = draw(50, 3, 37)
    options = {"directions": 1, "activation": activation}
    truth = results_and_gradients(run_with_recurrence, tensors, None, **options)
    single = [t.detach().float().requires_grad_() for t in tensors]
    compiled = results_and_gradients(run_elementwise, single, None, **options)
    plain = results_and_gradients(run_with_recurrence, single, None, **options)
    for exact, ours, torchs in zip(truth, compiled, plain, strict=True):
        ours_error, torchs_error = ((t.double() - exact).abs().max() for t in (ours, torchs))
        assert ours_error <= 2 * torchs_error + 1e-6 * exact.abs().max().clamp(min=1)


@needs_numba
def test_lanes_split_among_threads_are_the_lanes_of_one_thread(monkeypatch):
    tensors = draw(7, 3, 2 * 71)
    options = {"directions": 2, "activation": "tanh"}
    lengths = torch.tensor([7, 0, 4])
    alone = results_and_gradients(run_elementwise, tensors, lengths, **options)
    monkeypatch.setattr(sru_elementwise, "VALUES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    split = results_and_gradients(run_elementwise, tensors, lengths, **options)
    torch.testing.assert_close(split, alone, rtol=0, atol=0)


@needs_numba
def test_a_gradient_can_be_differentiated_again():
    tensors = draw(3, 2, 3)

    def run(*tensors):
        return run_elementwise(*tensors, torch.tensor([3, 1]), directions=1, activation="tanh")

    assert torch.autograd.gradgradcheck(run, tensors, atol=1e-6)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_in_a_valid_step_shows(dtype):
    tensors = draw(4, 1, 8, dtype)
    with torch.no_grad():
        tensors[0][1, 0, 1, 3] = float("nan")
    h, final = run_elementwise(*tensors, None, directions=1, activation="identity")
    assert h[1:, 0, 3].isnan().all()
    assert final[0, 3].isnan()
    assert h[:, 0, :3].isfinite().all()


@needs_numba
@pytest.mark.parametrize("value", [-1e4, -90.0, -88.0, -1e-3, 0.0, 1e-3, 0.299, 0.301, 9.0, 88.0, 1e4])
def test_float32_gates_and_tanh_are_torchs_at_the_ends_of_their_range(value):
    u = torch.zeros(1, 1, 3, 4)
    u[:, :, 0] = value
    u[:, :, 1:] = torch.tensor([-1e4, -1.0, 1.0, 1e4])
    tensors = u, torch.zeros(1, 1, 4), torch.zeros(4, 4), torch.zeros(1, 4)
    options = {"directions": 1, "activation": "tanh"}
    torch.testing.assert_close(
        run_elementwise(*tensors, None, **options), run_with_recurrence(*tensors, None, **options)
    )


@pytest.mark.parametrize(
    "options", [{}, {"version": 1}, {"bidirectional": True}, {"activation": "tanh", "skip": False}]
)
def test_without_numba_the_cell_trains_in_plain_torch(options, monkeypatch):
    cell = SRU(3, 4, 2, **options).double()
    x, lengths = torch.randn(5, 3, 3, dtype=torch.float64), torch.tensor([5, 2, 0])

    def outputs_and_gradients():
        output, final = cell(x, None, lengths)
        trained = [p for p in cell.parameters() if p.requires_grad]
        return output, final, *torch.autograd.grad(output.sin().sum() + final.cos().sum(), trained)

    first = outputs_and_gradients()
    monkeypatch.setattr(sru_elementwise, "numba_installed", lambda: False)
    torch.testing.assert_close(outputs_and_gradients(), first, rtol=1e-12, atol=1e-12)


def test_other_dtypes_run_in_plain_torch():
    cell = SRU(4, 4).bfloat16()
    output, _ = cell(torch.randn(3, 2, 4, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("version", [1, 2])
def test_dropout_is_one_mask_for_all_steps_and_keeps_the_mean(version):
    torch.manual_seed(0)
    cell = SRU(4, 4, 2, dropout=0.5, version=version).train()
    x = torch.randn(1, 1, 4).expand(6, 20_000, 4)
    dropped = cell.rnn_lst[0](x, torch.zeros(20_000, 4), None)[0]
    whole = cell.rnn_lst[0].eval()(x, torch.zeros(20_000, 4), None)[0]
    differs = (dropped - whole).abs() > 1e-6
    assert torch.equal(differs.all(0), differs.any(0))
    torch.testing.assert_close(dropped.mean(1), whole.mean(1), rtol=0, atol=0.05)
    assert torch.equal(
        cell.rnn_lst[1](x, torch.zeros(20_000, 4), None)[0], cell.rnn_lst[1].eval()(x, torch.zeros(20_000, 4), None)[0]
    )


def test_a_trained_state_dict_survives_a_round_trip(tmp_path):
    cell, other = SRU(3, 4, 2, bidirectional=True), SRU(3, 4, 2, bidirectional=True)
    torch.save(cell.state_dict(), tmp_path / "cell.pt")
    other.load_state_dict(torch.load(tmp_path / "cell.pt", weights_only=True))
    x = torch.randn(3, 2, 3)
    assert torch.equal(cell(x)[0], other(x)[0])


def test_importing_the_cells_does_not_import_numba():
    code = "import sys, cellport.cells; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_numba
def test_a_machine_without_a_folder_for_the_cache_compiles_in_every_process():
    code = """
import numba.core.caching, torch
for locator in numba.core.caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda *_: None)
from cellport.cells import SRU
assert SRU(3, 4)(torch.ones(2, 1, 3))[0].shape == (2, 1, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
