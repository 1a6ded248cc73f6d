"""Export the pronouncer in four forms, and compare every one with the NumPy reference on words of cmudict.

python -m examples.g2p.export [--folder out/g2p] [--words 2000]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from cellport.export import Report, to_onnx

from . import data
from .model import Beams, Encoder, Greedy, Pronouncer, Step
from .reference import Reference

ROWS = 64
_TEXT = {"text": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}


def export(folder: Path) -> dict[str, Report]:
    """Write `greedy.onnx`, `beams.onnx`, `encoder.onnx` and `step.onnx`, each proved equal to its module."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = data.weights()
    example = tuple(torch.from_numpy(array) for array in data.batch(["cell", "port", "a"]).values())
    reports = {}
    readers: dict[type[Pronouncer], list[str]] = {
        Greedy: ["phonemes", "count"],
        Beams: ["phonemes", "scores", "count"],
        Encoder: ["h"],
    }
    for kind, names in readers.items():
        reports[kind.__name__.lower()] = to_onnx(
            kind(weights),
            example,
            folder / f"{kind.__name__.lower()}.onnx",
            output_names=names,
            dynamic_shapes=_TEXT,
            state=None,  # a word is read whole
        )
    step = Step(weights)
    reports["step"] = to_onnx(
        step,
        (torch.full((3,), data.START), torch.zeros(3, step.decoder.hidden_size)),
        folder / "step.onnx",
        output_names=["logits", "h_out"],
        dynamic_shapes={"phoneme": {0: "batch"}, "h": {0: "batch"}},
        state={"h_out": "h"},
    )
    return reports


Spell = Callable[[list[str]], Iterator[list[str]]]


class Files:
    """The exported files, each as a function from words to the names of their phonemes."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in ("greedy", "beams", "encoder", "step")
        }

    def greedy(self, words: list[str]) -> Iterator[list[str]]:
        """By the file that holds the whole loop."""
        for part in _parts(words):
            phonemes, count = self._sessions["greedy"].run(["phonemes", "count"], data.batch(part))
            yield from map(data.named, phonemes, count)

    def beams(self, words: list[str]) -> Iterator[list[str]]:
        """By the file that holds the beam search: its best hypothesis."""
        for part in _parts(words):
            phonemes, count = self._sessions["beams"].run(["phonemes", "count"], data.batch(part))
            yield from map(data.named, phonemes[:, 0], count[:, 0])

    def steps(self, words: list[str]) -> Iterator[list[str]]:
        """By the step file, token by token."""
        for part in _parts(words):
            (h,) = self._sessions["encoder"].run(["h"], data.batch(part))
            phoneme, written = np.full(len(part), data.START), []
            while len(written) < data.MOST and not (phoneme == data.END).all():
                logits, h = self._sessions["step"].run(["logits", "h_out"], {"phoneme": phoneme, "h": h})
                phoneme = np.where(phoneme == data.END, data.END, logits.argmax(1))
                written.append(phoneme)
            yield from (data.named(row, int((row != data.END).sum())) for row in np.stack(written, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Export g2p_en's network and compare it with its NumPy reference.")
    parser.add_argument("--folder", type=Path, default=Path("out/g2p"))
    parser.add_argument("--words", type=int, default=2000)
    arguments = parser.parse_args()
    for report in export(arguments.folder).values():
        print(report)
    words, reference, files = data.sample(arguments.words), Reference(data.weights()), Files(arguments.folder)
    started = time.perf_counter()
    wanted = [[data.PHONEMES[index] for index in reference.predict(word)] for word in words]
    print(f"NumPy reference: {len(words)} words, {time.perf_counter() - started:.2f} s")
    forms: dict[str, Spell] = {"greedy": files.greedy, "steps": files.steps, "beams": files.beams}
    for name, spell in forms.items():
        started = time.perf_counter()
        found = list(spell(words))
        seconds = time.perf_counter() - started
        same = sum(a == b for a, b in zip(found, wanted, strict=True))
        right = sum(each in data.dictionary()[word] for word, each in zip(words, found, strict=True))
        print(f"{name}: {seconds:.2f} s, {same} as the reference, {right / len(words):.1%} as the dictionary has them")
        if name != "beams" and same != len(words):
            raise SystemExit(f"{name} differs from the reference for {len(words) - same} words")
    for word in ("cellport", "recurrent", "onnx"):
        print(f"{word}: {' '.join(next(files.beams([word])))}")


def _parts(words: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(words), ROWS):
        yield words[start : start + ROWS]


if __name__ == "__main__":
    main()
