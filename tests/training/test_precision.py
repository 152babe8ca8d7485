"""Mixed precision: passes in bfloat16; weights, statistics of normalisation and loss in float32."""

import pytest
import torch
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

from rapa_lib import TrainConfig, train
from rapa_lib.analog import TileConfig, convert_to_analog
from rapa_lib.experiments.analog_training import AnalogTraining
from rapa_lib.experiments.recipe import Recipe
from rapa_lib.layers import NoisyConv2d
from rapa_lib.training import InputScaling, evaluate, predict, reestimate_normalisation
from rapa_lib.training.precision import logits_of

MIXED = {"precision": "bfloat16", "epochs": 2, "batch_size": 16, "seed": 3}
KINDS = ("none", "random", "perforated", "noisy", "dropout")


def trained(tiling="random", **changes):
    network = tiny_network(tiling=tiling)
    return network, train(network, tiny_dataset(), TrainConfig(**MIXED | changes), progress=False)


def rounded(value):
    return value.bfloat16().float()


def test_a_linear_layer_under_bfloat16_is_the_product_of_rounded_numbers():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    by_hand = rounded(x) @ rounded(layer.weight).T + rounded(layer.bias)
    found = logits_of(layer, x, "bfloat16")
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, rounded(by_hand), rtol=2**-8, atol=2**-8)
    assert torch.equal(found, rounded(found))
    assert not torch.equal(found, layer(x))
    assert torch.equal(logits_of(layer, x, "float32"), layer(x))


@pytest.mark.parametrize("tiling", KINDS)
def test_products_are_bfloat16_and_what_is_kept_is_float32(tiling):
    network = tiny_network(tiling=tiling).train()
    seen = {}
    for name, layer in network.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    x = torch.randn(6, 2, 8, 8)
    loss = nn.functional.cross_entropy(logits_of(network, x, "bfloat16"), torch.arange(6) % 3)
    loss.backward()
    assert loss.dtype is torch.float32
    for name in ("features.0.0", "features.1.0", "classifier"):
        assert seen[name].dtype is torch.bfloat16, name
    kept = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert {t.dtype for t in kept.values() if t.is_floating_point()} == {torch.float32}
    assert {p.grad.dtype for p in network.parameters()} == {torch.float32}


def test_statistics_of_normalisation_are_taken_in_float32():
    network = tiny_network(tiling="none").train()
    conv, act, norm, _ = network.features[0]
    x = 3 + torch.randn(8, 2, 8, 8)
    logits_of(network, x, "bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        y = act(conv(x)).double()
    exact = 0.1 * y.mean((0, 2, 3))  # a tenth of the batch, from zero
    torch.testing.assert_close(norm.running_mean.double(), exact, rtol=1e-5, atol=1e-7)
    exact = 0.9 + 0.1 * y.var((0, 2, 3))
    torch.testing.assert_close(norm.running_var.double(), exact, rtol=1e-5, atol=0)


def test_the_noisy_control_takes_its_variance_in_float32():
    layer, x = NoisyConv2d(2, 3, 3, noise=0.5).train(), 5 + torch.randn(8, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.merged()(x).double()
        layer(x)
    exact = 0.9 + 0.1 * y.var((0, 2, 3), correction=0)
    torch.testing.assert_close(layer.variance.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tiling", KINDS)
def test_mixed_training_is_seeded_and_not_that_of_float32(tiling):
    one, training = trained(tiling)
    again, _ = trained(tiling)
    single, _ = trained(tiling, precision="float32")
    assert same_bits(one.state_dict(), again.state_dict())
    assert not same_bits(one.state_dict(), single.state_dict())
    assert training.history[-1]["test_error"] <= 100
    for name, weight in one.named_parameters():
        exact = dict(single.named_parameters())[name]
        assert (weight - exact).norm() < 0.2 * exact.norm() + 0.05, name


def test_a_mixed_training_goes_on_to_the_same_bits(tmp_path):
    whole, _ = trained()
    network, file = tiny_network(), tmp_path / "resume.pt"

    def stop(_, epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    stop.__qualname__ = "same"
    with pytest.raises(KeyboardInterrupt):
        train(network, tiny_dataset(), TrainConfig(**MIXED), checkpoint=file, progress=False,
              on_epoch=stop)  # fmt: skip
    network = tiny_network()

    def go(_, epoch):
        assert epoch == 2

    go.__qualname__ = "same"
    train(network, tiny_dataset(), TrainConfig(**MIXED), checkpoint=file, progress=False,
          on_epoch=go)  # fmt: skip
    assert same_bits(whole.state_dict(), network.state_dict())


def test_tests_are_at_the_precision_that_is_asked_for():
    network, training = trained()
    data, scaling = tiny_dataset(), training.scaling
    mixed = predict(network, data.test_images, scaling, precision="bfloat16")
    assert mixed.dtype is torch.float32
    assert torch.equal(mixed, rounded(mixed))
    # The training's own test is the same pass with the same draw, and so is the evaluation.
    fixed, training = trained("none")
    mixed = predict(fixed, data.test_images, training.scaling, precision="bfloat16")
    wrong = 100 * float((mixed.argmax(1) != data.test_labels).double().mean())
    assert training.history[-1]["test_error"] == wrong
    assert evaluate(fixed, data, training.scaling, precision="bfloat16").test_error == wrong


def test_reestimated_statistics_are_those_of_mixed_passes():
    network, data = tiny_network(tiling="none"), tiny_dataset()
    scaling = InputScaling.of(data.train_images)
    norm = network.features[0][2]
    reestimate_normalisation(network, data.train_images, scaling, precision="bfloat16")
    mixed = norm.running_mean.clone()
    reestimate_normalisation(network, data.train_images, scaling)
    assert not torch.equal(mixed, norm.running_mean)
    torch.testing.assert_close(mixed, norm.running_mean, rtol=0.02, atol=0.01)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match=r"^precision: got 'half', allowed: float32, bfloat16$"):
        TrainConfig(precision="half")


@pytest.mark.filterwarnings("ignore:.*outside the bounds of their devices")
def test_analog_tiles_take_float32_alone():
    network = convert_to_analog(tiny_network(), TileConfig(), seed=0)
    with pytest.raises(ValueError, match=r"^precision: got 'bfloat16', allowed for weights on an"):
        train(network, tiny_dataset(), TrainConfig(**MIXED), progress=False)
    with pytest.raises(ValueError, match=r"^precision: got 'bfloat16', allowed on analog tiles"):
        AnalogTraining.of(precision="bfloat16")


def test_records_name_the_precision_where_it_is_not_float32():
    assert "precision" not in Recipe().flat()
    assert Recipe.of(precision="bfloat16").flat()["precision"] == "bfloat16"
