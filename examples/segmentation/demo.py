"""Train a convolution net with and without a Graph LSTM, export both parts, prove and serve them, and compare.

python -m examples.segmentation.demo [--scenes 320] [--epochs 20] [--seed 0]
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray

from cellport.cells import levels_of, unite_graphs, visiting_order
from cellport.export import to_onnx
from cellport.serve import Server

from .model import FEATURES, Pixels, Regions, loss_of, region_means
from .scenes import CLASSES, SIDE, Scene, compose, mean_iou

OUT = Path("out/segmentation")
_BATCH = 8
Labels = list[NDArray[np.int64]]


def train(scenes: list[Scene], epochs: int, layers: int, seed: int = 0) -> tuple[Pixels, Regions]:
    """Train the net with so many layers of the Graph LSTM behind it: from the same start, on the same batches."""
    torch.manual_seed(seed)
    pixels, regions = Pixels(), Regions(layers=layers)
    parameters = [*pixels.parameters(), *regions.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    steps = epochs * -(-len(scenes) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order, losses = rng.permutation(len(scenes)), []
        for start in range(0, len(scenes), _BATCH):
            chosen = [scenes[i] for i in order[start : start + _BATCH]]
            loss = _loss(pixels, regions, chosen)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(f"  epoch {epoch + 1:2}: loss {np.mean(losses):.3f}", flush=True)
    return pixels.eval(), regions.eval()


def _loss(pixels: Pixels, regions: Regions, scenes: list[Scene]) -> torch.Tensor:
    union = unite_graphs([scene.neighbours for scene in scenes])
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    numbers = [scene.regions.ravel() + start for scene, start in zip(scenes, union.starts, strict=False)]
    which = torch.from_numpy(np.concatenate(numbers))
    counts = torch.from_numpy(np.concatenate([scene.counts() for scene in scenes]))
    features, scores = pixels(images)
    confidence = region_means(scores.reshape(-1, scores.shape[-1]), which, len(counts))
    of_nodes = region_means(features.reshape(-1, FEATURES), which, len(counts))
    order = visiting_order(confidence.detach().softmax(-1).numpy())
    levels = torch.from_numpy(levels_of(union.neighbours, order))
    found = regions(of_nodes, torch.from_numpy(union.neighbours), levels)
    return loss_of(confidence, counts) + loss_of(found, counts)


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Confidences from scores."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def graph_inputs(scene: Scene, features: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[str, NDArray]:
    """What the second file takes, from the features and scores of a scene's pixels."""
    order = visiting_order(softmax(scene.mean(scores)))
    levels = levels_of(scene.neighbours, order, symmetric=True)
    return {"features": scene.mean(features), "neighbours": scene.neighbours, "levels": levels}


def in_torch(pixels: Pixels, regions: Regions, scenes: list[Scene]) -> Labels:
    """The label of every pixel."""
    found = []
    with torch.no_grad():
        for scene in scenes:
            image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
            features, scores = (each[0].numpy() for each in pixels(image))
            given = graph_inputs(scene, features, scores).values()
            of_nodes = regions(*(torch.from_numpy(each) for each in given))
            found.append(of_nodes.numpy().argmax(-1)[scene.regions])
    return found


def draw(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Neighbours and levels of given sizes, for the proof."""
    nodes, width = sizes["nodes"], sizes["width"]
    levels = np.full(max(sizes["levels"], -(-nodes // width)) * width, -1)
    levels[rng.permutation(levels.size)[:nodes]] = rng.permutation(nodes)
    return {"neighbours": rng.integers(-1, nodes, (nodes, sizes["degree"])), "levels": levels.reshape(-1, width)}


def export(pixels: Pixels, regions: Regions, scenes: list[Scene]) -> Path:
    """Write both files into a folder of models; the second is proved at real superpixels too."""
    folder = OUT / "models"
    paths = {name: folder / name / "1" / "model.onnx" for name in ("pixels", "regions")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(np.stack([scene.image for scene in scenes[:2]])).permute(0, 3, 1, 2).contiguous()
    names = ["features", "scores"]
    print(to_onnx(pixels, (images,), paths["pixels"], output_names=names, dynamic_shapes={"images": {0: "batch"}}))
    with torch.no_grad():
        seen = [[each.numpy() for each in pair] for pair in zip(*pixels(images), strict=True)]
    cases = [graph_inputs(scene, *each) for scene, each in zip(scenes[:2], seen, strict=True)]
    args = tuple(torch.from_numpy(each) for each in cases[0].values())
    near = {0: "nodes", 1: "degree"}
    axes = {"features": {0: "nodes"}, "neighbours": near, "levels": {0: "levels", 1: "width"}}
    print(
        to_onnx(regions, args, paths["regions"], output_names=["scores"], dynamic_shapes=axes, draw=draw, cases=cases)
    )
    return folder


def served(folder: Path, scenes: list[Scene]) -> Labels:
    """The label of every pixel, by two requests a scene to a server on this machine."""
    with Server(folder, port=0) as server, triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:

        def ask(model: str, **arrays: NDArray) -> triton.InferResult:
            kinds = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}
            inputs = [triton.InferInput(name, list(a.shape), kinds[a.dtype]) for name, a in arrays.items()]
            for input, array in zip(inputs, arrays.values(), strict=True):
                input.set_data_from_numpy(array)
            return client.infer(model, inputs)

        found = []
        for scene in scenes:
            seen = ask("pixels", images=np.ascontiguousarray(scene.image.transpose(2, 0, 1)[None]))
            given = graph_inputs(scene, seen.as_numpy("features")[0], seen.as_numpy("scores")[0])
            found.append(ask("regions", **given).as_numpy("scores").argmax(-1)[scene.regions])
        return found


def picture(scenes: list[Scene], columns: Mapping[str, Labels], path: Path) -> None:
    """Images, truth and predictions side by side."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"image": [scene.image for scene in scenes], "truth": [scene.labels for scene in scenes], **columns}
    figure, axes = pyplot.subplots(len(scenes), len(shown), figsize=(2 * len(shown), 2 * len(scenes)))
    for place, (title, values) in enumerate(shown.items()):
        for row, value in enumerate(values[: len(scenes)]):
            axes[row, place].imshow(value, vmin=0, vmax=CLASSES - 1, cmap="tab10", interpolation="nearest")
            axes[row, place].axis("off")
        axes[0, place].set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> tuple[float, float, float]:
    """Train, compare, export, serve; the mean IoU of the net alone, with the Graph LSTM, and as served."""
    parser = argparse.ArgumentParser(description="Segment images with a Graph LSTM over superpixels.")
    parser.add_argument("--scenes", type=int, default=320, help="to train on (default 320)")
    parser.add_argument("--tested", type=int, default=100, help="held-out scenes (default 100)")
    parser.add_argument("--epochs", type=int, default=20, help="of training, for each of both nets (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the nets' first weights and the batches (default 0)")
    given = parser.parse_args(arguments)
    OUT.mkdir(parents=True, exist_ok=True)
    training, held_out = compose(given.scenes, 0, False), compose(given.tested, 1, True)
    sizes = [scene.nodes for scene in training]
    print(f"{len(training)} scenes of {SIDE} x {SIDE} pixels and {min(sizes)} to {max(sizes)} superpixels")
    best = mean_iou([scene.counts().argmax(-1)[scene.regions] for scene in held_out], held_out)
    labels, processor = {}, time.process_time()
    for name, layers in (("without graph", 0), ("with Graph LSTM", 2)):
        print(f"the net {name}")
        pixels, regions = train(training, given.epochs, layers, given.seed)
        labels[name] = in_torch(pixels, regions, held_out)
    print(f"both were trained in {time.process_time() - processor:.0f} s of one processor")
    by_server = served(export(pixels, regions, held_out), held_out)
    found = [mean_iou(each, held_out) for each in (*labels.values(), by_server)]
    picture(held_out[:6], labels, OUT / "scenes.png")
    print(f"mean IoU on {len(held_out)} held-out scenes: {found[0]:.2%} without the graph, {found[1]:.2%} with it,")
    print(f"{found[2]:.2%} as served; {best:.2%} is the most that these superpixels allow. See {OUT / 'scenes.png'}.")
    return found[0], found[1], found[2]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
