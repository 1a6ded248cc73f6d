"""Greedy decoding and beam search are exported as one Loop that stops at the end token, for any batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cellport.cells import GRU, GRUCell, LSTMCell, LSTMState, beam_search, greedy
from cellport.export import to_onnx

from .conftest import Exported

LETTERS, TOKENS, START, END, MOST = 11, 9, 1, 2, 12


class Translator(nn.Module):
    """A GRU that reads, an LSTM with attention that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 7)
        self.encoder = GRU(7, 6, batch_first=True)
        self.tokens = nn.Embedding(TOKENS, 5)
        self.decoder = LSTMCell(5 + 6, 6)
        self.out = nn.Linear(6, TOKENS)
        with torch.no_grad():
            for each in self.parameters():
                each.mul_(4)

    def encode(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, LSTMState, Tensor]:
        read, h = self.encoder(self.letters(text), lengths=lengths)
        padding = torch.arange(text.shape[1]) >= lengths.unsqueeze(1)
        return read, LSTMState(h[0], h[0]), padding

    def step(self, state: LSTMState, tokens: Tensor, read: Tensor, padding: Tensor) -> tuple[LSTMState, Tensor]:
        weights = (read @ state.h.unsqueeze(2)).squeeze(2).masked_fill(padding, -1e9).softmax(1)
        seen = (weights.unsqueeze(1) @ read).squeeze(1)
        output, state = self.decoder(torch.cat([self.tokens(tokens), seen], 1), state)
        return state, self.out(output)


class Greedy(Translator):
    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        read, state, padding = self.encode(text, lengths)
        tokens, written, state = greedy(self.step, state, START, end=END, max_steps=MOST, context=(read, padding))
        return tokens, written, state.h


class Beams(Translator):
    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        read, state, padding = self.encode(text, lengths)
        return beam_search(
            self.step,
            state,
            START,
            end=END,
            beams=3,
            max_steps=MOST,
            length_penalty=0.8,
            context=(read, padding),
            limits=lengths + 4,
        )


OUTPUTS = {Greedy: ["tokens", "written", "h_final"], Beams: ["tokens", "scores", "written"]}
AXES = {"text": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}


def example(batch: int, time: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, LETTERS, (batch, time), generator=generator)
    return text, torch.randint(1, time + 1, (batch,), generator=generator)


def export(kind: type[Translator], path: Path, **options: Any) -> Exported:
    torch.manual_seed(0)
    model = kind().eval()
    report = to_onnx(
        model, example(3, 5), path, output_names=OUTPUTS[kind], dynamic_shapes=AXES, lowering="native", **options
    )
    return Exported(model, path, report)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Translator], Exported]:
    return {kind: export(kind, tmp_path_factory.mktemp("generation") / "model.onnx") for kind in OUTPUTS}


def check(made: Exported) -> None:
    names, run = OUTPUTS[type(made.model)], made.session()
    for batch, time in ((1, 1), (2, 6), (7, 3), (16, 9)):
        text, lengths = example(batch, time, seed=batch)
        with torch.no_grad():
            wanted = made.model(text, lengths)
        found = run.run(names, {"text": text.numpy(), "lengths": lengths.numpy()})
        for name, array, tensor in zip(names, found, wanted, strict=True):
            assert array.shape == tuple(tensor.shape)
            np.testing.assert_allclose(array, tensor.numpy(), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_file_writes_what_the_module_writes_at_any_batch_and_time(made, kind):
    check(made[kind])


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 21, 22])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_it_does_so_with_every_opset(tmp_path, kind, opset):
    check(export(kind, tmp_path / "model.onnx", opset_version=opset))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_graph_holds_one_loop_and_the_encoder_outside_of_it(made, kind):
    graph = made[kind].graph
    operators = [node.op_type for node in graph]
    assert operators.count("Loop") == 1
    assert operators.count("GRU") == 1
    assert "Scan" not in operators
    loop = next(node for node in graph if node.op_type == "Loop")
    assert not {"GRU", "If", "Loop"} & {node.op_type for node in loop.attributes["body"].as_graph()}


class Countdown(nn.Module):
    """Writes as many tokens as a row's number, and counts the row's steps in a state."""

    def forward(self, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def step(state: tuple[Tensor, Tensor], tokens: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            left, steps = state
            logits = torch.stack([left, torch.full_like(left, 0.5)], 1)
            return (left - 1, steps + 1), logits

        tokens, lengths, (_, steps) = greedy(step, (number, torch.zeros_like(number)), 0, end=1, max_steps=1_000_000)
        return tokens[:, :3], lengths, steps


def test_the_loop_stops_when_the_last_row_has_ended(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(Countdown().eval(), (torch.tensor([2.0, 3.0]),), path, dynamic_shapes=({0: "batch"},), verify=False)
    # a loop that went on to its million steps would not come back
    tokens, lengths, steps = session(path).run(None, {"number": np.array([0, 2, 5, 0], np.float32)})
    assert lengths.tolist() == [0, 2, 5, 0]
    assert steps.tolist() == [1, 3, 6, 1]
    assert tokens.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_row_does_not_depend_on_what_it_is_batched_with(made, kind):
    run = made[kind].session()
    text, lengths = (each.numpy() for each in example(7, 5, seed=3))
    together = run.run(["tokens"], {"text": text, "lengths": lengths})[0]
    for row in range(7):
        one = {"text": text[row : row + 1, : lengths[row]], "lengths": lengths[row : row + 1]}
        assert run.run(["tokens"], one)[0][0].tolist() == together[row].tolist()


class Odd(nn.Module):
    """A state with one tensor twice and another that never changes, a step that returns both as they are."""

    def __init__(self, search: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, 4)
        self.cell = GRUCell(4, 4)
        self.out = nn.Linear(4, TOKENS)
        self.search = search

    def forward(self, h: Tensor, fixed: Tensor) -> tuple[Tensor, ...]:
        def step(state: dict[str, Tensor], tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            output, h = self.cell(self.tokens(tokens), state["h"] + 0.1 * state["again"])
            return {"h": h, "again": h, "fixed": state["fixed"]}, self.out(output + state["fixed"]) * 8

        state = {"h": h, "again": h, "fixed": fixed}
        if self.search == "beams":
            return beam_search(step, state, START, end=END, beams=2, max_steps=6)
        tokens, _, final = greedy(step, state, START, end=END, max_steps=6)
        return tokens, final["h"], final["again"], final["fixed"]


@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_a_state_may_hold_one_tensor_twice_and_return_another_unchanged(tmp_path, search):
    torch.manual_seed(2)
    model = Odd(search).eval()
    axes = {"h": {0: "batch"}, "fixed": {0: "batch"}}
    to_onnx(model, (torch.randn(3, 4), torch.randn(3, 4)), tmp_path / "model.onnx", dynamic_shapes=axes)
    h, fixed = torch.randn(5, 4), torch.randn(5, 4)
    with torch.no_grad():
        wanted = model(h, fixed)
    found = session(tmp_path / "model.onnx").run(None, {"h": h.numpy(), "fixed": fixed.numpy()})
    for array, tensor in zip(found, wanted, strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), atol=2e-5)


class StepOnly(Greedy):
    """One step of the same decoder, for a server that keeps its state."""

    def forward(  # type: ignore[override]
        self, token: Tensor, h: Tensor, c: Tensor, read: Tensor, padding: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state, logits = self.step(LSTMState(h, c), token, read, padding)
        return logits, state.h, state.c


class EncodeOnly(Greedy):
    def forward(self, text: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        read, state, padding = self.encode(text, lengths)
        return read, state.h, padding


def test_the_step_graph_token_by_token_writes_what_the_loop_writes(made, tmp_path):
    whole = made[Greedy]
    weights = whole.model.state_dict()
    step, encoder = StepOnly().eval(), EncodeOnly().eval()
    step.load_state_dict(weights)
    encoder.load_state_dict(weights)
    text, lengths = example(4, 5, seed=1)
    with torch.no_grad():
        read, h, padding = encoder(text, lengths)
    rows = {0: "batch"}
    to_onnx(
        step,
        (torch.zeros(4, dtype=torch.int64), h, h, read, padding),
        tmp_path / "step.onnx",
        output_names=["logits", "h_out", "c_out"],
        dynamic_shapes={
            "token": rows,
            "h": rows,
            "c": rows,
            "read": {0: "batch", 1: "read"},
            "padding": {0: "batch", 1: "read"},
        },
        state={"h_out": "h", "c_out": "c"},
    )
    wanted = whole.session().run(["tokens"], {"text": text.numpy(), "lengths": lengths.numpy()})[0]
    run = session(tmp_path / "step.onnx")
    feeds = {
        "token": np.full(4, START),
        "h": h.numpy(),
        "c": h.numpy(),
        "read": read.numpy(),
        "padding": padding.numpy(),
    }
    ended, written = np.zeros(4, bool), []
    for _ in range(MOST):
        logits, feeds["h"], feeds["c"] = run.run(["logits", "h_out", "c_out"], feeds)
        feeds["token"] = np.where(ended, END, logits.argmax(1))
        ended |= feeds["token"] == END
        written.append(feeds["token"])
    assert np.stack(written, 1).tolist() == wanted.tolist()
