"""Label thousands of documents with an engine in this process, follow a live text, and compare with plain runs.

python -m examples.pipeline.demo [--documents 500] [--rounds 3] [--snippets 8000]
"""

import argparse
import asyncio
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file

from cellport.export import to_onnx
from cellport.serve import AsyncEngine, Engine
from examples.language_id.data import CODES, LANGUAGES, Ids, encode, load
from examples.language_id.model import LanguageIdentifier, factory
from examples.language_id.sentences import SENTENCES
from examples.language_id.train import train

from .documents import Document, drawn, paragraphs
from .pipeline import Array, answers, follow
from .rivals import one_by_one, padded, session_of, sorted_and_padded

NAME = "language_id"
WEIGHTS = Path("out/language_id/weights.safetensors")
AT_ONCE, ROWS = 128, 32
LIVE = ("de", "fr", "fi")


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(description="Label documents with an engine inside of a data pipeline.")
    parser.add_argument("--documents", type=int, default=500, help="of each kind, at most (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring (default %(default)s)")
    parser.add_argument("--snippets", type=int, default=8000, help="to train on (default %(default)s)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return 0 if run(Path(folder), arguments.documents, arguments.rounds, arguments.snippets) else 1


def run(folder: Path, count: int, rounds: int, snippets: int) -> bool:
    """Train, export, label, compare; return whether all ways have answered the same."""
    training, held_out = load()
    documents = mixed(count, list(drawn(held_out, count, np.random.default_rng(1))))
    path = export(trained(training, snippets), folder)
    texts = [encode(each.text) for each in documents]
    steps = [len(ids) for ids in texts]
    print(f"{len(texts):,} documents of {min(steps)} to {max(steps):,} trigrams, {int(median(steps))} in the median")
    with Engine(path) as engine:
        scores = label(engine, texts)
        show(documents, scores)
        live(engine, texts)
        return compare(engine, path, texts, rounds)


def trained(training: list, snippets: int) -> LanguageIdentifier:
    """The model with the weights of the last `make demo`, or trained for a short while."""
    model = LanguageIdentifier()
    if WEIGHTS.exists():
        model.load_state_dict(load_file(WEIGHTS))
        print(f"weights of the last `make demo`, {WEIGHTS}")
    else:
        train(model, training, snippets)
    return model.eval()


def export(model: LanguageIdentifier, folder: Path) -> Path:
    """Export with its lookup table."""
    spec, path = factory(), folder / f"{NAME}.onnx"
    report = to_onnx(
        model,
        spec.args,
        path,
        input_names=spec.input_names,
        output_names=spec.output_names,
        dynamic_shapes=spec.dynamic_shapes,
        lookup=True,
    )
    print(report)
    return path


def mixed(count: int, others: list[Document]) -> list[Document]:
    """Paragraphs and other documents in a random order."""
    found = [each for each, _ in zip(paragraphs(), range(count), strict=False)] + others
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))]


def label(engine: Engine, texts: list[Ids]) -> Array:
    """The scores [texts, languages], by the pipeline."""

    async def collect() -> Array:
        async with AsyncEngine(engine) as shared:
            return np.array([each async for each in answers(shared, NAME, texts, AT_ONCE)])

    return asyncio.run(collect())


def show(documents: list[Document], scores: Array) -> None:
    """Print what the documents are labelled with."""
    found = [CODES[k] for k in scores.argmax(1)]
    known = [(each.language, code) for each, code in zip(documents, found, strict=True) if each.language]
    long = [
        (each.language, code)
        for each, code in zip(documents, found, strict=True)
        if each.language and len(each.text.split()) >= 8
    ]
    print(f"of {len(known):,} documents of words that were kept out of training {right(known):.1%} are labelled right,")
    print(f"of the {len(long):,} with 8 words or more {right(long):.1%}")
    unknown = Counter(code for each, code in zip(documents, found, strict=True) if each.language is None)
    likeliest = ", ".join(f"{LANGUAGES[code]} {part}" for code, part in unknown.most_common(4))
    print(f"{unknown.total():,} paragraphs of packages' descriptions are labelled: {likeliest}, …")


def right(pairs: list[tuple[str, str]]) -> float:
    """The part of the pairs that are equal."""
    return sum(a == b for a, b in pairs) / max(len(pairs), 1)


def live(engine: Engine, texts: list[Ids]) -> None:
    """Follow texts as they come, alone and while all documents are labelled."""
    print("\ntexts as they come, three trigrams at a time, and what they are taken for:")
    difference = 0.0
    for code in LIVE:
        whole = encode(SENTENCES[code])
        expected = engine.infer(NAME, {"tokens": whole[None]}, outputs=["guesses"])["guesses"][0]
        ends = [min(end, len(whole)) for end in range(3, len(whole) + 3, 3)]
        changes: list[str] = []
        for end, scores in zip(ends, follow(engine, NAME, pieces(whole)), strict=True):
            difference = max(difference, float(np.abs(scores - expected[end - 1]).max()))
            guess = LANGUAGES[CODES[int(scores.argmax())]]
            if not changes or not changes[-1].startswith(guess):
                changes.append(f"{guess} from {end}")
        print(f"  {SENTENCES[code]}\n    {', '.join(changes)} of {len(whole)}")
    print(f"largest difference from the same in one request: {difference:.1e}")
    alone = median(seconds_a_step(engine, whole) for _ in range(20))
    busy = threading.Thread(target=label, args=(engine, texts))
    busy.start()
    meanwhile = []
    while busy.is_alive():
        meanwhile.append(seconds_a_step(engine, whole))
    busy.join()
    print(f"a step of it takes {alone * 1e3:.2f} ms, and {median(meanwhile) * 1e3:.2f} ms while documents are labelled")


def pieces(ids: Ids) -> Iterator[Ids]:
    """Yield three trigrams at a time."""
    for start in range(0, len(ids), 3):
        yield ids[start : start + 3]


def seconds_a_step(engine: Engine, ids: Ids) -> float:
    """The median time of a step of a text that is followed."""
    moments = [time.perf_counter()]
    moments += [time.perf_counter() for _ in follow(engine, NAME, pieces(ids))]
    return median(np.diff(moments))


def compare(engine: Engine, path: Path, texts: list[Ids], rounds: int) -> bool:
    """Measure the ways to label all documents, in turn; return whether all of them answer the same."""
    session = session_of(path)
    ways: dict[str, Callable[[], Array]] = {
        "a loop, one document a run": lambda: one_by_one(session, texts),
        f"padded batches of {ROWS}": lambda: padded(session, texts, ROWS),
        f"sorted by length, padded batches of {ROWS}": lambda: sorted_and_padded(session, texts, ROWS),
        f"the engine, {AT_ONCE} at a time": lambda: label(engine, texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, Array] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            scores[name] = way()
            seconds[name].append(time.perf_counter() - started)
    first, *others = ways
    print(f"\n{len(texts):,} documents, medians of {rounds} interleaved rounds")
    for name in ways:
        ratio = median(a / b for a, b in zip(seconds[first], seconds[name], strict=True))
        print(f"  {name:42} {len(texts) / median(seconds[name]):7,.0f} documents/s  {ratio:5.2f} times the loop")
    difference = max(float(np.abs(scores[name] - scores[first]).max()) for name in others)
    same = all(np.array_equal(scores[name].argmax(1), scores[first].argmax(1)) for name in others)
    equal = same and difference < 1e-4
    print(f"results are {'equal' if equal else 'DIFFERENT'}: labels all the same: {same}; scores to {difference:.1e}")
    return equal


if __name__ == "__main__":
    raise SystemExit(main())
