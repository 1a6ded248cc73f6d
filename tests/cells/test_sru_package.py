"""SRU computes what the authors' package computes (sru 2.6.0, CPU), from the package's own state_dict."""

import itertools

import pytest
import torch

from cellport.cells import SRU

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGURATIONS = [
    {"input_size": input_size, "bidirectional": bidirectional, "version": version, "num_layers": layers}
    for input_size, bidirectional, version, layers in itertools.product((4, 8, 3), (False, True), (1, 2), (1, 2))
] + [
    {"input_size": 4, "bidirectional": False, "version": 2, "num_layers": 2, **more}
    for more in ({"activation": "tanh"}, {"skip": False}, {"rescale": False}, {"highway_bias": -2.0})
]


def pair(package, input_size, bidirectional, version, num_layers, activation="identity", skip=True, **more):
    more = {"rescale": True, "highway_bias": 0.0, **more}
    theirs = package.SRU(
        input_size, 4, num_layers, bidirectional=bidirectional, v1=version == 1, use_tanh=activation == "tanh",
        has_skip_term=skip, **more,
    )  # fmt: skip
    ours = SRU(
        input_size, 4, num_layers, bidirectional=bidirectional, version=version, activation=activation, skip=skip,
        **more,
    )  # fmt: skip
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: "-".join(str(v) for v in c.values()))
@pytest.mark.parametrize("padded", [False, True])
def test_forward_is_the_packages(package, configuration, padded):
    ours, theirs = pair(package, **configuration)
    x = torch.randn(5, 3, configuration["input_size"])
    state = torch.randn(ours.state_shapes(3)[0])
    lengths = torch.tensor([5, 2, 1]) if padded else None
    mask = torch.arange(5).unsqueeze(1) >= lengths if padded else None
    output, final = ours(x, state, lengths)
    with torch.no_grad():  # with gradients the package runs a Python loop, not its kernel
        wanted, wanted_final = theirs(x, state, mask_pad=mask)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(final, wanted_final, rtol=1e-5, atol=2e-6)


def test_parameters_are_drawn_as_the_package_draws_them(package):
    torch.manual_seed(0)
    theirs = package.SRU(3, 4, 2, dropout=0.25, rescale=True, highway_bias=-1.0).state_dict()
    torch.manual_seed(0)
    ours = SRU(3, 4, 2, dropout=0.25, highway_bias=-1.0).state_dict()
    torch.testing.assert_close(ours, dict(theirs), check_stride=False)
