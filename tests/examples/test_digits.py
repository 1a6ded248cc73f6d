"""The example of digits: held-out images stay apart, cutting keeps the ink, and the server reads as PyTorch does."""

from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from cellport.cells import MDLSTM
from cellport.serve import Server
from examples.digits import data, demo, model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load()


def test_no_image_is_both_trained_on_and_tested(digits: data.Digits) -> None:
    training, tested = data.split(digits)
    assert len(training.labels) + len(tested.labels) == len(digits.labels) == 1797
    seen = [{image.numpy().tobytes() for image in part.images} for part in (training, tested)]
    assert not seen[0] & seen[1]
    for part in (training, tested):
        assert torch.bincount(part.labels, minlength=data.CLASSES).min() > len(part.labels) / 12


def test_a_cut_image_has_all_ink_in_the_same_arrangement(digits: data.Digits) -> None:
    images, sizes = data.cut(digits.images)
    assert torch.equal(images.sum((1, 2)), digits.images.sum((1, 2)))
    assert len(sizes.unique(dim=0)) > 3
    for image, (height, width), whole in zip(images[:50], sizes[:50].tolist(), digits.images[:50], strict=True):
        rows, columns = np.nonzero(whole.numpy())
        own = whole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert torch.equal(image[:height, :width], own)


def test_an_image_without_ink_keeps_a_pixel() -> None:
    images, sizes = data.cut(torch.zeros(2, 8, 8))
    assert sizes.tolist() == [[1, 1], [1, 1]]
    assert images.shape == (2, 1, 1)


def test_distortion_is_small_and_different_for_every_image(digits: data.Digits) -> None:
    """None at all gives the image back; after half of it the most similar image mostly shows the same digit."""
    generator = torch.Generator().manual_seed(0)
    images, labels = (each[:200] for each in digits)
    torch.testing.assert_close(data.distort(images, generator, 0.0), images, atol=1e-5, rtol=0)
    copies = data.distort(images[:1].expand(20, -1, -1), generator)
    assert len(copies.flatten(1).unique(dim=0)) == 20
    nearest = torch.cdist(data.distort(images, generator, 0.5).flatten(1), images.flatten(1)).argmin(1)
    assert (labels[nearest] == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    "reader", [model.ByMDLSTM((3, 3)), model.ByGridLSTM(3, 2)], ids=lambda each: type(each).__name__
)
def test_what_surrounds_an_image_does_not_change_its_scores(digits: data.Digits, reader: torch.nn.Module) -> None:
    ragged = data.cut(digits.images[:20])
    with torch.no_grad():
        wanted = reader.eval()(*ragged)
        found = reader(*data.enlarge(ragged, 9, 13, float("nan")))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_each_direction_is_read_where_it_has_seen_the_whole_image() -> None:
    """Every pixel of an image, and none beside it, has a part in what each of the four says at its far corner."""
    torch.manual_seed(0)
    layer = MDLSTM(1, 3, batch_first=True)
    assert layer.flips == model.DIRECTIONS
    for sizes in ([4, 6], [3, 2]):
        image = torch.randn(1, 4, 6, 1, requires_grad=True)
        size = torch.tensor([sizes])
        corners = model.summary(layer(image, size), size)[0, :12].reshape(4, 3)
        for corner in corners:
            (gradient,) = torch.autograd.grad(corner.sum(), image, retain_graph=True)
            inside = torch.zeros(4, 6, dtype=torch.bool)
            inside[: sizes[0], : sizes[1]] = True
            assert torch.equal(gradient[0, :, :, 0] != 0, inside)


@pytest.mark.parametrize(
    "reader",
    [
        demo.Reader("md_lstm", model.ByMDLSTM((4,)), 1, 1e-2),
        pytest.param(demo.Reader("grid_lstm", model.ByGridLSTM(4, 1), 1, 1e-2), marks=pytest.mark.slow),
        demo.Reader("rows", model.ByRows(8, 1), 1, 1e-2, rows=True),
    ],
    ids=lambda reader: reader.name,
)
def test_the_server_reads_as_pytorch_does(digits: data.Digits, tmp_path: Path, reader: demo.Reader) -> None:
    """With a large head, by which it tells images apart after one pass of training."""
    training, tested = (data.Digits(*[each[:128] for each in part]) for part in data.split(digits))
    torch.manual_seed(0)
    torch.nn.init.normal_(reader.model.head.weight, std=5)
    found = demo.run([reader], training, tested, tmp_path)[reader.name]
    if not reader.rows:
        with Server(tmp_path, port=0) as server, triton.InferenceServerClient(server.address) as client:
            assert demo.singly(reader, client, tested.images) < 1e-4
            assert demo.larger(reader, client, tested.images) < 1e-4
    assert len(np.unique(demo.scores_of(reader, tested.images).argmax(1))) > 1
    assert found.changed == 0
    assert found.largest < 1e-4
    assert found.served == found.in_torch
