"""`SRU.from_sru` loads any configuration of the package `sru` 2.6.0, and computes what the package computes."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from cellport.cells import SRU, CellError, LSTMCell

from .cases import expected

pytestmark = pytest.mark.filterwarnings("ignore")

T, B, H = 5, 3, 4
CHOICES = {
    "input_size": (3, 4, 8),
    "num_layers": (1, 2, 3),
    "bidirectional": (False, True),
    "projection_size": (0, 2),
    "norm": (None, "pre", "post"),
    "use_tanh": (False, True),
    "highway_bias": (0.0, -2.0),
    "has_skip_term": (True, False),
    "rescale": (False, True),
    "v1": (False, True),
    "proj_input_to_hidden_first": (False, True),
    "nn_rnn_compatible_return": (False, True),
    "amp_recurrence_fp16": (False, True),
    "weight_c_init": (None, 0.3),
    "dropout": (0.0, 0.25),
    "rnn_dropout": (0.0, 0.25),
}


def sample(seed=0):
    """Configurations in which every value of every option meets every value of every other one."""
    draw = random.Random(seed)
    names = list(CHOICES)

    def pairs(configuration):
        return set(itertools.combinations(configuration.items(), 2))

    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(CHOICES[a], CHOICES[b])
    }
    found = []
    while missing:
        drawn = [{name: draw.choice(CHOICES[name]) for name in names} for _ in range(100)]
        best = max(drawn, key=lambda configuration: len(missing & pairs(configuration)))
        missing -= pairs(best)
        found.append(best)
    return found


SAMPLE = sample()


def build(package, norm=None, **options):
    """The package's network in evaluation mode; its biases and norms drawn too."""
    torch.manual_seed(0)
    module = package.SRU(
        hidden_size=H, layer_norm=norm is not None, normalize_after=norm == "post", **{"input_size": 3, **options}
    )
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or "layer_norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def told(norm=None, use_tanh=False, v1=False, **options):
    """What a caller says with a state_dict: all that shapes cannot tell."""
    return {
        "bidirectional": options.get("bidirectional", False),
        "activation": "tanh" if use_tanh else "identity",
        "version": 1 if v1 else 2,
        "layer_norm": norm,
        "skip": options.get("has_skip_term", True),
    }


@pytest.mark.parametrize("source", ["module", "state_dict"])
@pytest.mark.parametrize("index", range(len(SAMPLE)))
def test_forward_is_the_packages_and_the_oracles(package, index, source):
    options = SAMPLE[index]
    theirs = build(package, **options)
    ours = SRU.from_sru(theirs) if source == "module" else SRU.from_sru(theirs.state_dict(), **told(**options)).eval()
    input, state = torch.randn(T, B, options["input_size"]), torch.randn(ours.state_shapes(B)[0])
    for lengths, initial in ((None, None), (None, state), ([5, 2, 1], state)):
        valid = torch.arange(T).unsqueeze(1) < torch.tensor(lengths or [T] * B)
        with torch.no_grad():
            wanted, wanted_final = theirs(input, initial, None if lengths is None else ~valid)
            output, final = ours(input, initial, None if lengths is None else torch.tensor(lengths))
        if options["nn_rnn_compatible_return"]:
            wanted_final = wanted_final.view(ours.num_layers, -1, B, H).transpose(1, 2).flatten(2)
        # After a 'post' norm the package has the norm's bias in the padding, where we have 0.
        torch.testing.assert_close(output[valid], wanted[valid], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(final, wanted_final, rtol=1e-6, atol=1e-6)
        double = SRU.from_sru(theirs).double()
        truth, true_final = expected(double, input.double(), None if initial is None else initial.double(), lengths)
        np.testing.assert_allclose(output.numpy(), truth, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(final.numpy(), true_final[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", range(0, len(SAMPLE), 3))
def test_a_state_dict_goes_back_to_the_package(package, index):
    theirs = build(package, **SAMPLE[index])
    state_dict = SRU.from_sru(theirs).state_dict()
    assert list(state_dict) == list(theirs.state_dict())
    build(package, **SAMPLE[index]).load_state_dict(state_dict)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"n_proj": 2}, {"projection_size": 2}),
        ({"layer_norm": "pre"}, {"layer_norm": True}),
        ({"layer_norm": "post", "input_dropout": 0.25}, {"layer_norm": True, "normalize_after": True,
                                                         "rnn_dropout": 0.25}),
        ({"input_projection": True}, {"proj_input_to_hidden_first": True}),
    ],
)  # fmt: skip
def test_parameters_are_drawn_as_the_package_draws_them(package, ours, theirs):
    torch.manual_seed(0)
    wanted = package.SRU(3, H, 2, rescale=True, highway_bias=-1.0, **theirs).state_dict()
    torch.manual_seed(0)
    drawn = SRU(3, H, 2, highway_bias=-1.0, **ours).state_dict()
    torch.testing.assert_close(drawn, dict(wanted), check_stride=False)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"rnn_dropout": 0.5}, {"norm": "pre", "rnn_dropout": 0.5}])
def test_training_mode_and_dropout_come_along(package, options):
    theirs = build(package, num_layers=2, **options).train()
    ours = SRU.from_sru(theirs)
    assert ours.training
    input = torch.randn(T, B, 3)
    torch.manual_seed(1)
    wanted = theirs(input)[0]
    torch.manual_seed(1)
    torch.testing.assert_close(ours(input)[0], wanted, rtol=1e-5, atol=1e-5)


def test_parameters_are_copies_and_train(package):
    theirs = build(package, num_layers=2, projection_size=2, norm="pre")
    ours = SRU.from_sru(theirs)
    ours(torch.randn(T, B, 3))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    with torch.no_grad():
        ours.rnn_lst[0].weight.zero_()
    assert theirs.rnn_lst[0].weight.any()
    assert not SRU.from_sru(build(package, v1=True)).rnn_lst[0].weight_c.requires_grad


def test_loading_takes_no_random_numbers(package):
    theirs = build(package)
    before = torch.get_rng_state()
    SRU.from_sru(theirs)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_cell_of_the_package_is_one_layer(package):
    theirs = package.SRUCell(3, H, dropout=0.25).eval()
    input = torch.randn(T, B, 3)
    for ours in (SRU.from_sru(theirs), SRU.from_sru(theirs.state_dict()).eval()):
        with torch.no_grad():
            torch.testing.assert_close(ours(input)[0], theirs(input)[0], rtol=1e-6, atol=1e-6)
    assert SRU.from_sru(theirs).rnn_lst[0].dropout == 0.25


def test_a_network_inside_a_models_state_dict_is_found_by_its_prefix(package):
    theirs = build(package)
    model = nn.ModuleDict({"encoder": theirs, "head": nn.Linear(H, 2)})
    input = torch.randn(T, B, 3)
    for prefix in ("encoder", "encoder."):
        ours = SRU.from_sru(model.state_dict(), prefix=prefix)
        torch.testing.assert_close(ours(input)[0], SRU.from_sru(theirs)(input)[0], rtol=0, atol=0)
    with pytest.raises(CellError, match=r"has no keys 'rnn_lst.<layer>.<name>' \(there are some under prefix='encod"):
        SRU.from_sru(model.state_dict())


def test_the_dtype_is_the_tensors(package):
    ours = SRU.from_sru(build(package).double())
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float64}
    assert SRU.from_sru(build(package), batch_first=True).batch_first


def test_an_old_checkpoints_relu_is_loaded(package):
    theirs = build(package, num_layers=2)
    for layer in theirs.rnn_lst:
        layer.activation_type = 2
    ours = SRU.from_sru(theirs).double()
    input = torch.randn(T, B, 3, dtype=torch.float64)
    assert ours.activation == "relu"
    np.testing.assert_allclose(ours(input)[0].detach().numpy(), expected(ours, input)[0], rtol=1e-12, atol=1e-12)


def changed(module, change):
    change(module)
    return module


class Projection(nn.Linear):
    """A custom projection, as SRU++ has one."""


def state_dict_of(module, **change):
    """A state_dict with some tensors replaced, or left out where None is in their place."""
    state_dict = {**module.state_dict(), **{key.replace("__", "."): value for key, value in change.items()}}
    return {key: value for key, value in state_dict.items() if value is not None}


def custom(package):
    return package.SRU(H, H, 1, custom_m=Projection(H, 3 * H))


REFUSED = {
    "a-foreign-module": (lambda p: SRU.from_sru(nn.LSTM(3, 4)), "source is a LSTM; accepted is an SRU or SRUCell of"),
    "our-own": (lambda p: SRU.from_sru(SRU(3, 4)), "source is a SRU"),
    "our-own-step": (lambda p: SRU.from_sru(LSTMCell(3, 4)), "source is a LSTMCell"),
    "no-state-dict": (lambda p: SRU.from_sru("sru.pt"), "source is a str; accepted is an SRU or SRUCell of the pack"),
    "custom": (lambda p: SRU.from_sru(custom(p)), "layer 0 projects with custom_m, a Projection; accepted is the p"),
    "custom-keys": (lambda p: SRU.from_sru(custom(p).state_dict()), "has 'rnn_lst.0.custom_m.weight', of a custom"),
    "sru++": (
        lambda p: SRU.from_sru(changed(build(p), lambda m: setattr(m, "__class__", type("SRUpp", (nn.Module,), {})))),
        "source is a SRUpp",
    ),
    "own-forward": (
        lambda p: SRU.from_sru(type("Mine", (p.SRU,), {"forward": lambda self, x: x})(3, H)),
        "Mine has a forward of its own; accepted is the package's SRU",
    ),
    "selu": (
        lambda p: SRU.from_sru(changed(build(p), lambda m: setattr(m.rnn_lst[0], "activation_type", 3))),
        "layer 0 has activation_type 3; accepted is 0 (identity), 1 (tanh) or 2 (relu)",
    ),
    "layers-that-differ": (
        lambda p: SRU.from_sru(changed(build(p), lambda m: setattr(m.rnn_lst[1], "has_skip_term", False))),
        "layer 1 has skip=False; accepted is True, which the source tells",
    ),
    "contradicts-the-module": (
        lambda p: SRU.from_sru(build(p, bidirectional=True), bidirectional=False),
        "the caller gives bidirectional=False; accepted is True, which the source tells",
    ),
    "contradicts-skip": (
        lambda p: SRU.from_sru(build(p).state_dict(), skip=False),
        "the caller gives skip=False; accepted is True",
    ),
    "contradicts-norm": (
        lambda p: SRU.from_sru(build(p).state_dict(), layer_norm="post"),
        "the caller gives layer_norm='post'; accepted is None",
    ),
    "contradicts-norm-place": (
        lambda p: SRU.from_sru(build(p, norm="pre").state_dict(), layer_norm="post"),
        "the caller gives layer_norm='post'; accepted is 'pre'",
    ),
    "contradicts-version": (
        lambda p: SRU.from_sru(build(p).state_dict(), version=1),
        "the caller gives version=1; accepted is 2",
    ),
    "an-odd-number-of-outputs": (
        lambda p: SRU.from_sru(p.SRU(3, 5).state_dict(), bidirectional=True),
        "bidirectional is True; accepted is False for layers of 5 outputs, an odd number",
    ),
    "option": (lambda p: SRU.from_sru(build(p).state_dict(), activation="selu"), "SRU: activation is 'selu'; accepted"),
    "prefix-of-a-module": (
        lambda p: SRU.from_sru(build(p), prefix="encoder"),
        "prefix is 'encoder'; accepted is a prefix with a state_dict only",
    ),
    "foreign-keys": (
        lambda p: SRU.from_sru(state_dict_of(build(p), rnn_lst__0__weight_g=torch.zeros(3))),
        "has 'rnn_lst.0.weight_g'; accepted are input_to_hidden.weight and rnn_lst.<layer>. with weight",
    ),
    "no-keys": (lambda p: SRU.from_sru(nn.LSTM(3, 4).state_dict()), "has no keys 'rnn_lst.<layer>.<name>'"),
    "a-key-that-lacks": (
        lambda p: SRU.from_sru(state_dict_of(build(p), rnn_lst__1__scale_x=None)),
        "lacks 'rnn_lst.1.scale_x'",
    ),
    "a-norm-in-one-layer": (
        lambda p: SRU.from_sru(state_dict_of(build(p, norm="pre"), rnn_lst__1__layer_norm__bias=None)),
        "lacks 'rnn_lst.1.layer_norm.bias'",
    ),
    "shape": (
        lambda p: SRU.from_sru(state_dict_of(build(p), rnn_lst__1__weight=torch.zeros(4, 13))),
        "'rnn_lst.1.weight' has shape [4, 13]; accepted is [4, 12] beside 'rnn_lst.0.weight' [3, 16]",
    ),
    "no-tensor": (
        lambda p: SRU.from_sru(state_dict_of(build(p), rnn_lst__1__weight=3)),
        "'rnn_lst.1.weight' is a int; accepted is a tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_network_is_refused(package, call, message):
    with pytest.raises(CellError) as error:
        call(package)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_proj": 4}, "SRU: n_proj is 4; accepted is 0 to 2, less than a layer's sizes"),
        ({"n_proj": 4, "num_layers": 2}, "SRU: n_proj is 4; accepted is 0 to 3"),
        ({"n_proj": -1}, "SRU: n_proj is -1; accepted is an integer of at least 0"),
        ({"layer_norm": "before"}, "SRU: layer_norm is 'before'; accepted is None, 'pre' or 'post'"),
        ({"input_size": 4, "input_projection": True}, "SRU: input_projection is True; accepted is False for an input"),
        ({"input_projection": 1}, "SRU: input_projection is 1; accepted is True or False"),
        ({"input_dropout": 2}, "SRU: input_dropout is 2; accepted is a probability, 0 to 1"),
        ({"version": True}, "SRU: version is True; accepted is 1 or 2"),
        ({"highway_bias": None}, "SRU: highway_bias is None; accepted is a finite number"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(CellError) as error:
        SRU(**{"input_size": 3, "hidden_size": 4, **options})
    assert message in str(error.value)
