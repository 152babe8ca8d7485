"""Test errors are those of the predictions they are named after; the network is left alone."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

from rapa_lib import InputScaling, RapaConvNet, evaluate, merge_tiles, reestimate_normalisation
from rapa_lib.training.evaluation import redraws, vote


def scaling():
    return InputScaling.of(tiny_dataset().train_images)


def lively(network: RapaConvNet) -> RapaConvNet:
    """Give a fresh network normalisation statistics that matter, as a training would."""
    generator = torch.Generator().manual_seed(3)
    for block in network.features:
        block[2].running_mean.copy_(
            0.3 * torch.rand(len(block[2].running_mean), generator=generator)
        )
        block[2].running_var.copy_(0.3 + torch.rand(len(block[2].running_var), generator=generator))
    return network


def share_wrong(predictions: list[int]) -> float:
    """Test error in percent, image by image."""
    labels = tiny_dataset().test_labels.tolist()
    wrong = sum(p != label for p, label in zip(predictions, labels, strict=True))
    return 100 * wrong / len(labels)


# --- Votes ------------------------------------------------------------------------------------


def vote_by_hand(logits):
    """The class with most votes; among equals the one with the greatest mean softmax."""
    winners = []
    for image in range(logits.shape[1]):
        votes = [0] * logits.shape[2]
        softmax = torch.zeros(logits.shape[2], dtype=torch.double)
        for draw in logits[:, image].double():
            votes[int(draw.argmax())] += 1
            softmax += draw.exp() / draw.exp().sum()
        winners.append(max(range(len(votes)), key=lambda c: (votes[c], float(softmax[c]))))
    return winners


@pytest.mark.parametrize(("draws", "classes"), [(1, 2), (2, 3), (4, 3), (5, 2), (5, 10), (12, 4)])
def test_vote_against_a_loop(draws, classes):
    logits = 3 * torch.randn(draws, 300, classes, generator=torch.Generator().manual_seed(draws))
    assert vote(logits).argmax(1).tolist() == vote_by_hand(logits)


def test_votes_outweigh_any_certainty_and_ties_go_to_the_surer_class():
    sure, unsure = 40.0, 0.1
    logits = torch.tensor(
        [
            [[unsure, 0, 0], [sure, 0, 0], [0, unsure, 0]],
            [[unsure, 0, 0], [0, unsure, 0], [0, 0, sure]],
            [[0, sure, 0], [0, 0, unsure], [0, unsure, 0]],
            [[0, sure, 0], [0, unsure, 0], [unsure, 0, 0]],
            [[unsure, 0, 0], [0, 0, unsure], [0, 0, unsure]],
        ]
    )
    # Image 0: 3 against 2 that are certain. Image 1: 1, 2, 2; image 2: 1, 2, 2.
    scores = vote(logits)
    assert scores.argmax(1).tolist() == [0, 1, 2] == vote_by_hand(logits)
    assert scores.floor().tolist() == [[3, 2, 0], [1, 2, 2], [1, 2, 2]]


def test_a_unanimous_certain_vote_is_no_extra_vote():
    logits = torch.tensor([[[1000.0, 0]]]).expand(3, 1, 2)
    assert 3 < float(vote(logits)[0, 0]) < 4
    assert float(vote(logits)[0, 1]) < 1


# --- Test errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "anew"),
    [
        ({"tiling": "random"}, True),
        ({"tiling": "perforated"}, True),
        ({"tiling": "random", "n_tiles": (1, 1, 1)}, False),
        ({"tiling": "perforated", "n_tiles": (1, 1, 1)}, False),
        ({"tiling": "random_fixed"}, False),
        ({"tiling": "image"}, False),
        ({"tiling": "none"}, False),
        ({"tiling": "enlarged"}, False),
        ({"tiling": "noisy"}, True),
        ({"tiling": "noisy", "noise": (0.0, 0.0, 0.0)}, False),
    ],
    ids=str,
)
def test_draws_are_made_where_the_network_draws(changes, anew):
    network = lively(tiny_network(**changes))
    assert redraws(network) == anew
    errors = evaluate(network, tiny_dataset(), scaling(), draws=4)
    assert errors.draws == (4 if anew else 1)
    if not anew:
        assert errors.test_error_std_draws == 0
        assert errors.test_error == errors.test_error_vote == errors.test_error_softmax


@pytest.mark.parametrize("tiling", ["random", "perforated"])
def test_every_error_is_that_of_its_predictions(tiling):
    """The logits of every pass are noted; all errors are computed from them by hand."""
    network = lively(tiny_network(tiling=tiling, n_tiles=(16, 8, 4)))
    passes = []
    network.register_forward_hook(lambda layer, inputs, logits: passes.append(logits.clone()))
    errors = evaluate(network, tiny_dataset(), scaling(), draws=4, seed=1)
    draws, raw, merged = torch.stack(passes[:4]), passes[4], passes[-1]
    assert len(raw) == len(merged) == 30
    each = [share_wrong(one.argmax(1).tolist()) for one in draws]
    assert len(set(each)) > 1  # else the test could not tell
    mean = sum(each) / 4
    assert asdict(errors) == pytest.approx(
        {
            "test_error": mean,
            "test_error_std_draws": (sum((e - mean) ** 2 for e in each) / 3) ** 0.5,
            "test_error_vote": share_wrong(vote_by_hand(draws)),
            "test_error_softmax": share_wrong(F.softmax(draws, 2).mean(0).argmax(1).tolist()),
            "test_error_merged": share_wrong(merged.argmax(1).tolist()),
            "test_error_merged_raw": share_wrong(raw.argmax(1).tolist()),
            "draws": 4,
        }
    )


def test_seeds_name_the_draws():
    network = lively(tiny_network(n_tiles=(16, 8, 4)))
    torch.manual_seed(0)
    first = evaluate(network, tiny_dataset(), scaling(), draws=3, seed=5)
    torch.manual_seed(1)
    assert evaluate(network, tiny_dataset(), scaling(), draws=3, seed=5) == first
    others = {evaluate(network, tiny_dataset(), scaling(), draws=3, seed=s) for s in range(4)}
    assert len({e.test_error for e in others}) > 1
    assert len({(e.test_error_merged, e.test_error_merged_raw) for e in others | {first}}) == 1


def test_one_draw_has_no_deviation():
    errors = evaluate(lively(tiny_network()), tiny_dataset(), scaling(), draws=1)
    assert errors.draws == 1
    assert errors.test_error_std_draws == 0
    assert errors.test_error == errors.test_error_vote


def ordinary_with_mean_kernels(network):
    """The merged network, built by hand."""
    merged = tiny_network(tiling="none", init_seed=8).eval()
    state = network.state_dict()
    for i in range(3):
        for name in ("weight", "bias"):
            tiles = state[f"features.{i}.0.{name}"]
            state[f"features.{i}.0.{name}"] = sum(tiles) / len(tiles)
        del state[f"features.{i}.0._extra_state"]
    merged.load_state_dict(state)
    return merged


@torch.no_grad()
def reestimated_by_hand(merged, images):
    """One pass over all images: each layer normalises with what it measures."""
    x = scaling()(images)
    for convolution, activation, norm, pool in merged.features:
        x = activation(convolution(x))
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        norm.running_mean.copy_(mean)
        n = x.numel() // x.shape[1]
        norm.running_var.copy_(var * n / (n - 1))
        x = (x - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
        x = pool(norm.weight[:, None, None] * x + norm.bias[:, None, None])
    return merged


@pytest.mark.parametrize("tiling", ["random", "image"])
def test_merged_errors_are_those_of_a_network_built_by_hand(tiling):
    network = lively(tiny_network(tiling=tiling))
    errors = evaluate(network, tiny_dataset(), scaling(), draws=2)
    data, merged = tiny_dataset(), ordinary_with_mean_kernels(network)
    wrong = []
    for _ in range(2):
        with torch.no_grad():
            wrong.append(share_wrong(merged(scaling()(data.test_images)).argmax(1).tolist()))
        reestimated_by_hand(merged, data.train_images)
    assert (errors.test_error_merged_raw, errors.test_error_merged) == pytest.approx(tuple(wrong))
    assert wrong[0] != wrong[1]  # else the test could not tell


@pytest.mark.parametrize("tiling", ["noisy", "perforated"])
def test_merged_controls_are_the_ordinary_network_with_their_kernels(tiling):
    """Without noise, and computing every position: what the removal of chance alone changes."""
    network = lively(tiny_network(tiling=tiling))
    errors = evaluate(network, tiny_dataset(), scaling(), draws=2)
    ordinary = tiny_network(tiling="none", init_seed=8).eval()
    kept = ordinary.state_dict().keys()
    state = {name: value for name, value in network.state_dict().items() if name in kept}
    ordinary.load_state_dict(state)
    merged = merge_tiles(network).eval()
    assert [type(block[0]) for block in merged.features] == [nn.Conv2d] * 3
    data = tiny_dataset()
    images = scaling()(data.test_images)
    with torch.no_grad():
        assert torch.equal(merged(images), ordinary(images))
        raw = share_wrong(ordinary(images).argmax(1).tolist())
    reestimated_by_hand(ordinary, data.train_images)
    with torch.no_grad():
        anew = share_wrong(ordinary(images).argmax(1).tolist())
    assert (errors.test_error_merged_raw, errors.test_error_merged) == pytest.approx((raw, anew))


def test_without_batch_normalisation_there_is_nothing_to_reestimate():
    network = tiny_network(normalisation="group")
    errors = evaluate(network, tiny_dataset(), scaling(), draws=2)
    assert errors.test_error_merged == errors.test_error_merged_raw


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        (0, ValueError, "draws: got 0, allowed: at least 1"),
        (2.0, TypeError, "draws: got 2.0, expected an integer"),
    ],
)
def test_bad_draws_are_named(draws, error, message):
    with pytest.raises(error, match=f"^{message}"):
        evaluate(tiny_network(), tiny_dataset(), scaling(), draws=draws)


@pytest.mark.parametrize("mode", [True, False])
def test_network_and_generator_are_left_as_they_were(mode):
    network = lively(tiny_network()).train(mode)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    modules = [type(m) for m in network.modules()]
    torch.manual_seed(2)
    generator = torch.get_rng_state()
    evaluate(network, tiny_dataset(), scaling(), draws=2)
    assert torch.equal(torch.get_rng_state(), generator)
    assert same_bits(network.state_dict(), state)
    assert [type(m) for m in network.modules()] == modules
    assert {m.training for m in network.modules()} == {mode}
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_mode_of_every_part_is_left_as_it_was():
    network = lively(tiny_network()).train()
    network.features[1][2].eval()
    evaluate(network, tiny_dataset(), scaling(), draws=2)
    assert [block[2].training for block in network.features] == [True, False, True]


# --- Normalisation statistics -----------------------------------------------------------------


def test_statistics_are_those_of_the_images():
    network = lively(ordinary_with_mean_kernels(lively(tiny_network())))
    expected = ordinary_with_mean_kernels(lively(tiny_network()))
    reestimated_by_hand(expected, tiny_dataset().train_images)
    reestimate_normalisation(network, tiny_dataset().train_images, scaling())
    for block, by_hand in zip(network.features, expected.features, strict=True):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(
                getattr(block[2], name), getattr(by_hand[2], name), rtol=1e-4, atol=1e-5
            )


def test_statistics_of_several_passes_are_their_means_and_every_image_counts():
    norm = nn.BatchNorm2d(2)
    images = tiny_dataset().train_images
    for n, batch_size, sizes in ((48, 16, [16] * 3), (47, 16, [24, 23]), (5, 16, [5])):
        reestimate_normalisation(norm, images[:n], scaling(), batch_size=batch_size)
        parts = [scaling()(part).double() for part in images[:n].split(sizes)]
        means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
        variances = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
        torch.testing.assert_close(norm.running_mean.double(), means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), variances, rtol=1e-4, atol=1e-5)
        assert int(norm.num_batches_tracked) == len(sizes)


def test_modes_momentum_and_parameters_are_left_as_they_were():
    network = tiny_network(tiling="none").train()
    network.features[0][2].momentum = 0.25
    network.features[1][2].momentum = None
    network.features[2].eval()
    modes = [layer.training for layer in network.modules()]
    parameters = [p.detach().clone() for p in network.parameters()]
    reestimate_normalisation(network, tiny_dataset().train_images, scaling())
    assert [layer.training for layer in network.modules()] == modes
    assert [block[2].momentum for block in network.features] == [0.25, None, 0.1]
    assert all(map(torch.equal, network.parameters(), parameters))


def test_a_pass_that_fails_leaves_the_network_usable():
    network = tiny_network(tiling="none").train()
    with pytest.raises(RuntimeError, match="channels"):
        reestimate_normalisation(network, tiny_dataset().train_images[:, :1], ONE)
    assert {layer.training for layer in network.modules()} == {True}
    assert {block[2].momentum for block in network.features} == {0.1}


ONE = InputScaling((0.5,), (0.25,))


def test_layers_without_running_statistics_stay_without():
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.InstanceNorm2d(2))
    reestimate_normalisation(model, tiny_dataset().train_images, scaling())
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_a_merged_copy_shares_nothing_with_its_network():
    network = lively(tiny_network())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    merged = merge_tiles(network)
    reestimate_normalisation(merged, tiny_dataset().train_images, scaling())
    assert same_bits(network.state_dict(), before)


def test_another_data_set_gives_other_errors():
    """The test part is what is measured."""
    data, network = tiny_dataset(), lively(tiny_network(tiling="image"))
    errors = evaluate(network, data, scaling())
    rotated = replace(data, test_labels=(data.test_labels + 1) % 3)
    assert evaluate(network, rotated, scaling()).test_error != errors.test_error
