import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from rapa_lib import (
    PerforatedConv2d,
    RapaConv2d,
    convert_to_rapa,
    count_patches,
    frozen_draws,
    merge_tiles,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten()
    )


@pytest.mark.parametrize(
    "make",
    [
        torchvision.models.alexnet,
        torchvision.models.vgg11,
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v3_small,
        torchvision.models.densenet121,
    ],
)
def test_torchvision_networks_keep_their_function_there_and_back(make):
    model = make(num_classes=7).eval()
    x = torch.randn(1, 3, 64, 64)
    convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    rapa = convert_to_rapa(model, 4, input_size=(3, 64, 64))
    assert not any(isinstance(m, nn.Conv2d) for m in rapa.modules())
    assert [n for n, m in rapa.named_modules() if isinstance(m, RapaConv2d)] == convs
    assert [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)] == convs
    merged = merge_tiles(rapa)
    assert [n for n, m in merged.named_modules() if isinstance(m, nn.Conv2d)] == convs
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(rapa(x), expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(merged(x), expected, rtol=1e-3, atol=1e-5)
    assert {k: v.shape for k, v in merged.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_a_step_down_the_gradient_lowers_a_converted_networks_loss():
    rapa = convert_to_rapa(torchvision.models.resnet18(num_classes=3), 2, input_size=(3, 32, 32))
    rapa = rapa.double()
    x, labels = torch.randn(8, 3, 32, 32, dtype=torch.double), torch.arange(8) % 3
    with frozen_draws(rapa, seed=0):
        loss = nn.functional.cross_entropy(rapa(x), labels)
        loss.backward()
        slope = sum(p.grad.square().sum() for p in rapa.parameters())
        step = 1e-6
        with torch.no_grad():
            for parameter in rapa.parameters():
                parameter -= step * parameter.grad
            gained = loss - nn.functional.cross_entropy(rapa(x), labels)
    assert gained / (step * slope) == pytest.approx(1, abs=0.05)  # as the gradient promised


def test_named_layers_only_and_other_options():
    model = small_model().eval()
    rapa = convert_to_rapa(model, {"2": 5}, "image", tile_init="independent")
    assert type(rapa[0]) is nn.Conv2d
    assert (rapa[2].n_tiles, rapa[2].tiling, rapa[2].training) == (5, "image", False)
    assert not torch.equal(rapa[2].weight[0], rapa[2].weight[1])
    assert type(model[2]) is nn.Conv2d


def test_inplace():
    model = small_model()
    assert convert_to_rapa(model, 2, inplace=True) is model
    assert isinstance(model[0], RapaConv2d)
    assert merge_tiles(model, inplace=True) is model
    assert type(model[0]) is nn.Conv2d


def test_a_model_that_is_one_layer():
    layer = convert_to_rapa(nn.Conv2d(1, 1, 3), 2)
    assert isinstance(layer, RapaConv2d)
    assert type(merge_tiles(layer)) is nn.Conv2d
    assert type(merge_tiles(PerforatedConv2d(1, 1, 3))) is nn.Conv2d


def test_shared_layers_stay_shared():
    conv = nn.Conv2d(3, 3, 3)
    model = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv), "c": conv})
    rapa = convert_to_rapa(model, 2)
    assert isinstance(rapa["a"], RapaConv2d)
    assert rapa["a"] is rapa["b"][0]
    assert rapa["a"] is rapa["c"]


def test_input_size_caps_one_number_and_checks_named_ones():
    model = small_model()
    assert count_patches(model, (3, 8, 8)) == {"0": 64, "2": 9}
    assert model.training
    rapa = convert_to_rapa(model, 16, input_size=(3, 8, 8))
    assert [m.n_tiles for m in rapa if isinstance(m, RapaConv2d)] == [16, 9]
    with pytest.raises(ValueError, match="n_tiles: got 16 for layer '2', which has 9 patches"):
        convert_to_rapa(model, {"2": 16}, input_size=(3, 8, 8))
    with pytest.raises(ValueError, match=r"input_size: the model fails on \(1, 8, 8\)"):
        convert_to_rapa(model, 16, input_size=(1, 8, 8))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: convert_to_rapa(nn.Linear(2, 2), 2),
            ValueError,
            "model: it has no torch.nn.Conv2d",
        ),
        (lambda: convert_to_rapa("resnet18", 2), TypeError, "model: got str"),
        (lambda: convert_to_rapa(small_model(), 0), ValueError, "n_tiles: got 0"),
        (lambda: convert_to_rapa(small_model(), 2.0), TypeError, r"n_tiles: got 2\.0"),
        (lambda: convert_to_rapa(small_model(), {"1": 2}), ValueError, "called '1'.*has 0, 2"),
        (lambda: convert_to_rapa(small_model(), {"0": -1}), ValueError, r"n_tiles\['0'\]: got -1"),
        (lambda: convert_to_rapa(small_model(), 2, "spiral"), ValueError, "tiling: got 'spiral'"),
        (lambda: convert_to_rapa(small_model(), 2, inplace=1), TypeError, "inplace: got 1"),
        (lambda: merge_tiles(3), TypeError, "model: got int"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_layers_that_cannot_be_replicated_are_named():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match="layer '0' is lazy"):
        convert_to_rapa(lazy, 2)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="layer '0' is parametrized"):
        convert_to_rapa(normed, 2)


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Plain(nn.Conv2d):
    pass


def test_what_tiles_would_not_do_is_refused_and_not_dropped():
    pruned = prune.l1_unstructured(nn.Conv2d(1, 1, 3), "weight", 0.5)
    patched = nn.Conv2d(1, 1, 3)
    patched.forward = lambda x: x
    hooked = nn.Conv2d(1, 1, 3)
    hooked.register_forward_hook(lambda *_: None)
    for layer, message in (
        (Doubling(1, 1, 3), r"layer '1' \(Doubling\) has its own forward"),
        (patched, "layer '1' .* has its own forward"),
        (pruned, "layer '1' is pruned"),
        (hooked, r"layer '1' has hooks \(forward_hooks\)"),
    ):
        model = nn.Sequential(nn.Conv2d(1, 1, 3), layer)
        for inplace in (True, False):
            with pytest.raises(ValueError, match=message):
                convert_to_rapa(model, 2, inplace=inplace)
        assert type(model[0]) is nn.Conv2d
        assert type(convert_to_rapa(model, {"0": 2}, inplace=True)[0]) is RapaConv2d
    rapa = convert_to_rapa(nn.Sequential(Plain(1, 1, 3)), 2)
    rapa[0].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layer '0' has hooks \(forward_pre_hooks\)"):
        merge_tiles(rapa)


def test_a_failed_conversion_in_place_changes_nothing():
    model = small_model()
    with pytest.raises(ValueError, match="tiling"):
        convert_to_rapa(model, 2, "spiral", inplace=True)
    assert type(model[0]) is nn.Conv2d
