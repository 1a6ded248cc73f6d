"""The example of the Graph LSTM: its scenes are right, and both files answer when served as the nets do in PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cellport.cells import levels_of
from examples.segmentation import demo, scenes
from examples.segmentation.model import FEATURES, Regions


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    return scenes.compose(3, 0, True)


def test_superpixels_cover_a_scene_and_neighbours_touch(drawn: list[scenes.Scene]) -> None:
    for scene in drawn:
        assert sorted(set(scene.regions.ravel())) == list(range(scene.nodes))
        assert scene.counts().sum() == scenes.SIDE**2
        assert set(scene.labels.ravel()) <= set(range(scenes.CLASSES))
    regions = np.array([[0, 0, 1], [2, 2, 1]])
    assert scenes.touching(regions).tolist() == [[1, 2], [0, 2], [0, 1]]


def test_the_mean_over_superpixels_is_that_of_the_training(drawn: list[scenes.Scene]) -> None:
    scene = drawn[0]
    flat = torch.from_numpy(scene.image).reshape(-1, 3)
    found = demo.region_means(flat, torch.from_numpy(scene.regions.ravel()), scene.nodes)
    np.testing.assert_allclose(found, scene.mean(scene.image), atol=1e-5)


def test_mean_iou_of_the_truth_is_1_and_of_ground_alone_a_share_of_it(drawn: list[scenes.Scene]) -> None:
    every = [scene.labels for scene in drawn]
    seen = len(set(np.concatenate(every).ravel()))
    assert scenes.mean_iou(every, drawn) == pytest.approx(seen / scenes.CLASSES)
    assert scenes.mean_iou([0 * each for each in every], drawn) < 1 / scenes.CLASSES


def test_a_held_out_scene_shows_no_part_of_a_photograph_that_is_trained_on() -> None:
    """The photograph holds the numbers of its columns."""
    photograph = np.tile(np.arange(512.0), (512, 1))
    trained, held_out = (scenes.part(photograph, which) for which in (False, True))
    assert trained.max() < held_out.min()
    assert trained.shape[1] + held_out.shape[1] == 512


def test_only_with_the_graph_a_superpixel_depends_on_its_neighbours(drawn: list[scenes.Scene]) -> None:
    torch.manual_seed(0)
    scene = drawn[0]
    levels = torch.from_numpy(levels_of(scene.neighbours, np.arange(scene.nodes)))
    features, neighbours = torch.randn(scene.nodes, FEATURES), torch.from_numpy(scene.neighbours)
    other = features.clone()
    other[0] += 1
    for layers, changed in ((0, 1), (2, scene.nodes)):
        regions = Regions(layers=layers)
        with torch.no_grad():
            one, two = (regions(each, neighbours, levels) for each in (features, other))
        assert 1 <= int((one != two).any(1).sum()) <= changed
        assert bool((one[1:] != two[1:]).any()) == (layers > 0)


def test_labels_are_served_as_in_pytorch(
    drawn: list[scenes.Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "OUT", tmp_path)
    pixels, regions = demo.train(drawn, 1, layers=2)
    served = demo.served(demo.export(pixels, regions, drawn), drawn)
    wanted = demo.in_torch(pixels, regions, drawn)
    assert np.mean([np.mean(a == b) for a, b in zip(served, wanted, strict=True)]) > 0.999
    demo.picture(drawn[:2], {"served": served}, tmp_path / "scenes.png")
    assert (tmp_path / "scenes.png").stat().st_size > 1000
