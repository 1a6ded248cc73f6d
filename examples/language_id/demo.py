"""The whole road on real input: train, export, prove, serve, call, stream.

python -m examples.language_id.demo [--text "…"] [--snippets 80000] [--reuse]
"""

import argparse
import queue
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
import tritonclient.grpc as triton
from safetensors.torch import load_file, save_file

from cellport.export import Report, to_onnx, verify
from cellport.serve import Client, Server

from .data import CODES, LANGUAGES, Ids, Snippets, draw, encode, load, trigrams
from .model import LanguageIdentifier, factory
from .sentences import SENTENCES
from .train import SNIPPETS, predict, train

OUT = Path("out/language_id")
TABLE, PLAIN = "language_id", "language_id_plain"
HELD_OUT_SNIPPETS = 4000
TYPED = "Wir treffen uns morgen früh am Bahnhof"


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(description="Train, export, prove, serve and call a language identifier.")
    parser.add_argument("--text", help="a sentence of your own to identify")
    parser.add_argument("--snippets", type=int, default=SNIPPETS, help=f"how many to train on (default {SNIPPETS:,})")
    parser.add_argument("--reuse", action="store_true", help="take the weights of the last run instead of training")
    arguments = parser.parse_args()
    if arguments.snippets < 1:
        parser.error(f"--snippets is {arguments.snippets}; accepted: at least 1")
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)

    heading("Training")
    model, held_out = trained(arguments.snippets, arguments.reuse)
    expected = predict(model, held_out)
    print(
        f"held-out accuracy in PyTorch: {accuracy(expected, held_out):.2%} ({len(expected):,} snippets of 1 to 8 words)"
    )
    print("(every word of them was kept out of training)")

    heading("Export and proof")
    reports = {name: export(model, name, lookup=name == TABLE) for name in (TABLE, PLAIN)}
    show_proof(model, reports)

    with Server(OUT / "models", port=0) as server:
        url = f"127.0.0.1:{server.port}"
        heading(f"Served on {url}")
        with Client(url) as client:
            predictions = served(client, held_out)
            print(f"held-out accuracy as served:  {accuracy(predictions, held_out):.2%} (a request each, 32 at a time)")
            different = int((predictions != expected).sum())
            print(f"predictions that differ from PyTorch's: {different}")
            heading("Sentences")
            show_sentences(client)
            if arguments.text:
                heading("Your text")
                show_answer(client, arguments.text)
            heading("As one types (tritonclient, one sequence, a trigram a step)")
            show_typing(url, arguments.text or TYPED)
            heading("Time of one request (one thread, medians of interleaved runs)")
            show_times(model, client)
    return 1 if different else 0


def heading(text: str) -> None:
    """Print the title of a section."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}\n{'-' * len(text)}", flush=True)


def trained(snippets: int, reuse: bool) -> tuple[LanguageIdentifier, Snippets]:
    """The trained model and the held-out snippets."""
    training, held_out = load()
    words = sum(len(each.words) for each in training)
    print(f"{len(CODES)} languages, {words:,} words to train on, {sum(len(v.words) for v in held_out):,} held out")
    model = LanguageIdentifier()
    weights = OUT / "weights.safetensors"
    if reuse and weights.exists():
        model.load_state_dict(load_file(weights))
        print(f"weights of the last run, {weights}")
    else:
        train(model, training, snippets)
        save_file(model.state_dict(), weights)
    return model.eval(), draw(held_out, HELD_OUT_SNIPPETS, np.random.default_rng(1))


def accuracy(predictions: Ids, snippets: Snippets) -> float:
    """The part of the predictions that are right."""
    return float((predictions == snippets.languages).mean())


def export(model: LanguageIdentifier, name: str, *, lookup: bool) -> Report:
    """Export to a file of the model repository."""
    spec = factory()
    return to_onnx(
        model,
        spec.args,
        OUT / "models" / name / "1" / "model.onnx",
        input_names=spec.input_names,
        output_names=spec.output_names,
        dynamic_shapes=spec.dynamic_shapes,
        lookup=lookup,
    )


def show_proof(model: LanguageIdentifier, reports: dict[str, Report]) -> None:
    """Print what was exported and how far it is from float64."""
    for report in reports.values():
        print(report)
    verification = verify(model, reports[TABLE].path)
    tables = reports[TABLE].manifest.tables
    print(f"\nwith its table the file was compared in {verification.cases} cases: batches, lengths, states, chunkings")
    for each in verification.outputs:
        print(f"  {each.name:12} error {each.onnx_error:.1e} against float64; PyTorch's own {each.torch_error:.1e}")
    size = sum(table.bytes for table in tables) / 2**20
    print(f"lookup table: {tables[0].vocabulary:,} rows in {len(tables)} tables, {size:.0f} MiB")


def request(client: Client, ids: Ids, model: str = TABLE) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The answer of one request with one text: scores of the languages."""
    inputs = {"tokens": ids[None], "lengths": np.array([len(ids)])}
    return client.infer(model, inputs, ["answer"])["answer"][0]


def served(client: Client, snippets: Snippets) -> Ids:
    """The predictions of the server, which batches requests of different length."""
    rows = [ids[:length] for ids, length in zip(snippets.ids, snippets.lengths, strict=True)]
    with ThreadPoolExecutor(32) as pool:
        return np.array([scores.argmax() for scores in pool.map(lambda ids: request(client, ids), rows)])


def show_sentences(client: Client) -> None:
    """Identify the sentences that ship with the example."""
    right = 0
    for code, sentence in SENTENCES.items():
        guess = CODES[int(request(client, encode(sentence)).argmax())]
        right += guess == code
        mark = " " if guess == code else "✗"
        print(f"{mark} {LANGUAGES[guess]:11} {sentence}")
    print(f"{right} of {len(SENTENCES)} right")


def show_answer(client: Client, text: str) -> None:
    """Identify a text, with the three likeliest languages."""
    scores = request(client, encode(text))
    chances = softmax(scores)
    best = ", ".join(f"{LANGUAGES[CODES[k]]} {chances[k]:.0%}" for k in np.argsort(-chances)[:3])
    print(f"{text}\n→ {best}")


def softmax(
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Probabilities from unnormalised log-probabilities."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def show_typing(url: str, text: str) -> None:
    """Stream a text through a sequence, one trigram a message, and print the guess whenever it changes."""
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    ids = encode(text)
    with triton.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for step, token in enumerate(ids):
            tokens = triton.InferInput("tokens", [1, 1], "INT64").set_data_from_numpy(np.array([[token]]))
            client.async_stream_infer(
                TABLE,
                [tokens],
                outputs=[triton.InferRequestedOutput("guesses")],
                sequence_id=1,
                sequence_start=step == 0,
                sequence_end=step == len(ids) - 1,
            )
        typed, shown, line = "", None, ""
        for trigram in trigrams(text):
            result, error = answers.get(timeout=30)
            if error is not None or result is None:
                raise RuntimeError(f"a step of the stream failed: {error}")
            typed += trigram[-1]
            chances = softmax(result.as_numpy("guesses")[0, 0])
            best = int(chances.argmax())
            line = f"  {typed.rstrip() or '(no letters)':40} {LANGUAGES[CODES[best]]:11} {chances[best]:4.0%}"
            if best != shown:
                print(line)
                shown = best
        print(line)
        client.stop_stream()


def show_times(model: LanguageIdentifier, client: Client, rounds: int = 60) -> None:
    """Time one text at a time: in this process, and through gRPC."""
    texts = [encode(sentence) for sentence in SENTENCES.values()]
    sessions = {name: session(OUT / "models" / name / "1" / "model.onnx") for name in (TABLE, PLAIN)}

    def eager(ids: Ids) -> None:
        with torch.inference_mode():
            model(torch.from_numpy(ids[None]), torch.tensor([len(ids)]))

    contenders: dict[str, Callable[[Ids], object]] = {
        "onnxruntime, lookup table": sessions[TABLE],
        "onnxruntime, no table": sessions[PLAIN],
        "PyTorch, eager": eager,
        "gRPC, lookup table": lambda ids: request(client, ids, TABLE),
        "gRPC, no table": lambda ids: request(client, ids, PLAIN),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 3):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(texts[number % len(texts)])
            if number >= 3:
                times[name].append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    base = median(times["PyTorch, eager"])
    mean = sum(len(ids) for ids in texts) / len(texts)
    print(f"texts of {mean:.0f} trigrams on average")
    for name, values in times.items():
        print(f"  {name:27} {median(values) * 1e3:6.2f} ms   {base / median(values):5.1f} × eager")


def session(path: Path) -> Callable[[Ids], object]:
    """A file in onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids: loaded.run(["answer"], {"tokens": ids[None], "lengths": np.array([len(ids)])})


if __name__ == "__main__":
    sys.exit(main())
