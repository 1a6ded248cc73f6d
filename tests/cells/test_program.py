"""Every cell exports with torch.export, batch and time dynamic, and the program computes what the cell computes."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from cellport.cells import (
    GRU,
    LSTM,
    RNN,
    SRU,
    GRUCell,
    LayerNormLSTM,
    LayerNormLSTMCell,
    LSTMCell,
    RNNCell,
    SRUCell,
    native,
)

from .cases import draw, tensors_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # torch's own tracer, at its first use
]

CELLS = {
    "rnn": lambda: RNN(3, 4, nonlinearity="relu", bias=False),
    "rnn-stacked-bidirectional": lambda: RNN(3, 4, 2, bidirectional=True),
    "lstm": lambda: LSTM(3, 4),
    "lstm-stacked-bidirectional-batch-first": lambda: LSTM(3, 4, 2, bidirectional=True, batch_first=True),
    "lstm-projected-bidirectional": lambda: LSTM(3, 4, bidirectional=True, proj_size=2),
    "lstm-peephole-coupled": lambda: LSTM(3, 4, peephole=True, coupled=True, bias=False),
    "lstm-peephole-bidirectional": lambda: LSTM(3, 4, bidirectional=True, peephole=True),
    "lstm-layer-norm-stacked": lambda: LayerNormLSTM(3, 4, 2),
    "gru-stacked": lambda: GRU(3, 4, 2),
    "gru-reset-before-bidirectional": lambda: GRU(3, 4, bidirectional=True, reset_after=False),
    "sru": lambda: SRU(4, 4),
    "sru-v1-tanh": lambda: SRU(4, 4, version=1, activation="tanh", bias=False),
    "sru-bidirectional-batch-first": lambda: SRU(3, 4, bidirectional=True, batch_first=True),
    "sru-no-skip": lambda: SRU(4, 4, skip=False, rescale=False),
    "sru-pre-norm-factorised": lambda: SRU(3, 4, 2, layer_norm="pre", n_proj=2),
    "sru-post-norm-bidirectional": lambda: SRU(3, 4, bidirectional=True, layer_norm="post", input_projection=True),
}
STEP_CELLS = {
    "rnn": (RNN, RNNCell, {}),
    "lstm": (LSTM, LSTMCell, {}),
    "lstm-peephole": (LSTM, LSTMCell, {"peephole": True}),
    "lstm-coupled": (LSTM, LSTMCell, {"coupled": True, "peephole": True}),
    "lstm-layer-norm": (LayerNormLSTM, LayerNormLSTMCell, {}),
    "gru": (GRU, GRUCell, {}),
    "sru": (SRU, SRUCell, {}),
    "sru-pre-norm": (SRU, SRUCell, {"layer_norm": "pre", "n_proj": 2}),
    "sru-post-norm": (SRU, SRUCell, {"layer_norm": "post"}),
}


@pytest.mark.parametrize(
    ("with_state", "with_lengths"),
    [
        pytest.param(True, True, id="state-lengths"),
        pytest.param(False, False, id="bare"),
        pytest.param(True, False, id="state", marks=pytest.mark.slow),
        pytest.param(False, True, id="lengths", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("build", CELLS.values(), ids=CELLS)
def test_the_exported_program_is_the_cell_at_any_batch_and_time(build, with_state, with_lengths):
    cell = build().double().eval()

    def arguments(steps, batch):
        input, state = draw(cell, steps, batch, seed=steps)
        # The padding stays finite here: NaN is tested below.
        lengths = torch.tensor([steps, 0, -1, *[1] * batch])[:batch] if with_lengths else None
        return input, state if with_state else None, lengths

    batch, time = Dim("batch"), Dim("time")
    state_shapes = [{1: batch} for _ in cell.state_names]
    shapes = (
        {0: batch, 1: time} if cell.batch_first else {0: time, 1: batch},
        None if not with_state else state_shapes[0] if len(state_shapes) == 1 else tuple(state_shapes),
        {0: batch} if with_lengths else None,
    )
    example = arguments(5, 3)
    if with_state and len(state_shapes) > 1:
        example = (example[0], tuple(example[1]), example[2])
    program = export(cell, example, dynamic_shapes=shapes, strict=False).module()
    for steps, size in ((5, 3), (9, 4), (1, 2), (2, 1)):
        values = arguments(steps, size)
        output, final = cell(*values)
        state = tuple(values[1]) if with_state and len(state_shapes) > 1 else values[1]
        exported_output, exported_final = program(values[0], state, values[2])
        torch.testing.assert_close(exported_output, output)
        torch.testing.assert_close(tensors_of(exported_final), tensors_of(final))


@pytest.mark.parametrize("name", ["rnn-stacked-bidirectional", "lstm", "gru-reset-before-bidirectional", "sru"])
def test_the_exported_program_never_reads_the_padding(name):
    cell = CELLS[name]().double().eval()
    input, _ = draw(cell, 5, 3)
    lengths = torch.tensor([3, 0, 5])
    padding = torch.arange(5).unsqueeze(1) >= lengths
    dirty = input.masked_fill((padding.T if cell.batch_first else padding).unsqueeze(-1), float("nan"))
    program = export(cell, (input, None, lengths), strict=False).module()
    torch.testing.assert_close(program(dirty, None, lengths)[0], cell(input, None, lengths)[0])
    torch.testing.assert_close(tensors_of(program(dirty, None, lengths)[1]), tensors_of(cell(input, None, lengths)[1]))


@pytest.mark.parametrize(("sequence", "build", "options"), STEP_CELLS.values(), ids=STEP_CELLS)
def test_a_single_step_cell_exports(sequence, build, options):
    cell = build(3, 4, **options).eval()
    program = export(cell, (torch.randn(3, 3),), dynamic_shapes=({0: Dim("batch")},), strict=False).module()
    x = torch.randn(5, 3)
    torch.testing.assert_close(program(x)[0], cell(x)[0])


@pytest.mark.parametrize(("sequence", "build", "options"), STEP_CELLS.values(), ids=STEP_CELLS)
def test_a_single_step_cell_is_one_step_of_its_sequence_cell(sequence, build, options):
    sequence, cell = sequence(3, 4, **options), build(3, 4, **options)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    renamed = {
        f"{k}_l0" if build is not SRUCell else k.replace("layer.", "rnn_lst.0.", 1): v
        for k, v in cell.state_dict().items()
    }
    sequence.load_state_dict(renamed)
    x, state = torch.randn(2, 3), cell.pack_state([torch.randn(2, 4) for _ in cell.state_names])
    output, new = cell(x, state)
    whole, final = sequence(x.unsqueeze(0), sequence.pack_state([t.unsqueeze(0) for t in tensors_of(state)]))
    torch.testing.assert_close(output, whole[0])
    torch.testing.assert_close(tensors_of(new), tuple(t[0] for t in tensors_of(final)))


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0, -1])], ids=["whole", "lengths"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru-reset-before"])
def test_an_operator_is_the_directions_of_its_layer(kind, direction, lengths):
    options = {"bidirectional": True, **({"reset_after": False} if kind == "gru-reset-before" else {})}
    layer = {"rnn": RNN, "lstm": LSTM}.get(kind, GRU)(3, 4, **options)
    picked = {"forward": slice(0, 1), "reverse": slice(1, 2), "bidirectional": slice(0, 2)}[direction]
    x, states = torch.randn(5, 3, 3), [torch.randn(2, 3, 4) for _ in layer.state_names]
    output, final = layer(x, layer.pack_state(states), lengths)
    weight_ih, weight_hh, bias = (t.detach()[picked] for t in layer.stacked(0))
    arguments = (x, weight_ih, weight_hh, bias, lengths, *(s[picked] for s in states), direction)
    if kind == "lstm":
        actual, *actual_final = torch.ops.cellport.lstm(*arguments)
    elif kind == "rnn":
        actual, *actual_final = torch.ops.cellport.rnn(*arguments, "tanh")
    else:
        actual, *actual_final = torch.ops.cellport.gru(*arguments, kind == "gru")
    torch.testing.assert_close(actual, output.detach()[..., 4 * picked.start : 4 * picked.stop])
    torch.testing.assert_close(tuple(actual_final), tuple(t.detach()[picked] for t in tensors_of(final)))


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0, -1])], ids=["whole", "lengths"])
def test_operators_keep_torchs_rules_for_custom_operators(lengths):
    x, h = torch.randn(5, 3, 3), torch.randn(2, 3, 4)
    for operator, gates, options in (
        (native.lstm, 4, (h.clone(), "bidirectional")),
        (native.gru, 3, ("bidirectional", True)),
        (native.gru, 3, ("bidirectional", False)),
        (native.rnn, 1, ("bidirectional", "relu")),
    ):
        weights = (torch.randn(2, 4 * gates, 3), torch.randn(2, 4 * gates, 4), torch.randn(2, 8 * gates))
        torch.library.opcheck(operator, (x, *weights, lengths, h, *options))


def test_a_model_around_a_cell_exports_with_the_cells_inside():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.sru, self.out = nn.Embedding(11, 4), SRU(4, 4, 2), nn.Linear(4, 2)

        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.out(self.sru(self.embedding(tokens), lengths=lengths)[0])

    model = Tagger().eval()
    batch, time = Dim("batch"), Dim("time")
    example = (torch.randint(0, 11, (6, 3)), torch.tensor([6, 2, 4]))
    program = export(model, example, dynamic_shapes=({0: time, 1: batch}, {0: batch}), strict=False).module()
    other = (torch.randint(0, 11, (8, 2)), torch.tensor([8, 1]))
    torch.testing.assert_close(program(*other), model(*other))
