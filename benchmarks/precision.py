"""What smaller weights and tables do to a tagger: bytes, largest error against float64, accuracy, speed.

A tagger of two layers reads tokens and says, at each step, of which class the last "marked" token was. It is trained
for a moment, exported in float32, and changed by the passes of cellport.export. Each file runs in onnxruntime with one
thread, in interleaved rounds; speeds are relative to the first file of its cell.

    python benchmarks/precision.py [--hidden 128 512] [--cells LSTM GRU SRU] [--rounds 15] [--json precision.json]
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from cellport import cells
from cellport.export import passes, to_onnx
from cellport.export.precision import Variant, compare_variants, measure
from cellport.export.runs import Arrays, Runner

VOCABULARY, CLASSES, STEPS = 2_000, 8, 64
BATCHES = (1, 16)
Change = Callable[[ir.Model], object]


class Tagger(nn.Module):
    """Tokens [batch, time] to scores [batch, time, classes]."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.cell = getattr(cells, cell)(hidden, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores."""
        return self.head(self.cell(self.embedding(tokens))[0])


def drawn(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens, and the class of the last marked one; every second token is marked."""
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCABULARY, (batch, STEPS)))
    marked = tokens % 2 == 0
    last = torch.where(marked, torch.arange(STEPS), 0).cummax(1).values
    return tokens, (tokens.gather(1, last) // 2) % CLASSES


def trained(cell: str, hidden: int, steps: int) -> Tagger:
    torch.manual_seed(0)
    model = Tagger(cell, hidden)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for number in range(steps):
        tokens, tags = drawn(16, number)
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tags.flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


def accuracy(run: Runner) -> float:
    tokens, tags = drawn(64, 1 << 20)
    return float((run({"tokens": tokens.numpy()})["scores"].argmax(-1) == tags.numpy()).mean())


def calibrated(model: ir.Model) -> None:
    feeds = [{"tokens": drawn(4, (1 << 21) + number)[0].numpy()} for number in range(4)]
    passes.Int8Weights(passes.calibrate(model, feeds))(model)


VARIANTS: dict[str, Sequence[Change]] = {
    "float32": [],
    "tables float16": [passes.TableTypes("float16")],
    "tables int8": [passes.TableTypes("int8")],
    "tables int8, blocks of 64": [passes.TableTypes("int8", 64)],
    "weights float16": [passes.HalfWeights()],
    "weights int8": [passes.Int8Weights()],
    "weights int8, found in each call": [passes.Int8Weights(proven=False)],
    "weights int8, calibrated": [calibrated],
    "weights int8, tables int8": [passes.TableTypes("int8"), passes.Int8Weights()],
}


def figures(cell: str, form: str, hidden: int, model: Tagger, rounds: int, folder: Path) -> list[Variant]:
    """Export a model, change it in each way, and measure all files."""
    path = folder / f"{cell}-{form}.onnx"
    to_onnx(
        model,
        (torch.zeros(2, 3, dtype=torch.long),),
        path,
        output_names=["scores"],
        dynamic_shapes={"tokens": {0: "batch", 1: "time"}},
        state=None,
        lengths=None,
        lowering="native" if form == "native" else "scan",
        verify=False,
    )
    files = {}
    for name, changes in VARIANTS.items():
        changed = ir.load(path)
        for change in (*changes, passes.RemoveDead(), common.NameFixPass()):
            change(changed)
        files[name] = folder / f"{form}-{name}.onnx"
        ir.save(changed, files[name])

    def truth(feeds: Arrays) -> Arrays:
        with torch.inference_mode():
            return {"scores": double(torch.from_numpy(feeds["tokens"])).numpy()}

    double = Tagger(cell, hidden).double().eval()
    double.load_state_dict(model.state_dict())
    return compare_variants(files, truth, feeds(), metric=accuracy, rounds=rounds)


def feeds() -> dict[int, Arrays]:
    return {batch: {"tokens": drawn(batch, (1 << 22) + batch)[0].numpy()} for batch in BATCHES}


def compare_forms(forms: Sequence[str], rounds: int, folder: Path) -> None:
    """Print the speed of float32 and int8 files of all forms against the first form in float32."""
    files = {
        f"{form}, {name}": folder / f"{form}-{name}.onnx" for form in forms for name in ("float32", "weights int8")
    }
    for name, ratios in measure(files, feeds(), rounds=rounds).items():
        print(f"  {name:20}" + "  ".join(f"{ratio:5.2f}x at batch {batch}" for batch, ratio in ratios.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Bytes, errors, accuracy and speed of smaller weights and tables.")
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--cells", nargs="+", default=["LSTM", "GRU", "SRU"])
    parser.add_argument("--steps", type=int, default=120, help="of training")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for hidden in given.hidden:
        for cell in given.cells:
            model = trained(cell, hidden, given.steps)
            forms = ("native", "scan") if cell != "SRU" else ("native",)
            with tempfile.TemporaryDirectory() as folder:
                for form in forms:
                    told = f"{cell}, hidden {hidden}" + ("" if cell == "SRU" else f", {form}")
                    made = figures(cell, form, hidden, model, given.rounds, Path(folder))
                    print(told)
                    for each in made:
                        error, truth = each.errors["scores"], each.largest["scores"]
                        speed = "  ".join(f"{ratio:5.2f}x at batch {batch}" for batch, ratio in each.speed.items())
                        told_error = f"error {error:.1e} of {truth:4.1f}  {each.metric:.3f}"
                        print(f"  {each.name:33}{each.bytes / 2**20:7.2f} MiB  {told_error}  {speed}")
                    found += [{"model": told, **dataclasses.asdict(each)} for each in made]
                if len(forms) > 1:
                    print(f"{cell}, hidden {hidden}, both forms")
                    compare_forms(forms, given.rounds, Path(folder))
                sys.stdout.flush()
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
