"""Tiles that are averaged: every step is the ordinary network, every k steps local SGD."""

from dataclasses import replace

import pytest
import torch
from tiny import same_bits, tiny_dataset, tiny_network
from torch import nn

from rapa_lib import RapaConv2d, TrainConfig, convert_to_rapa, merge_tiles, train
from rapa_lib.analog import convert_to_analog, ideal, rpu_baseline
from rapa_lib.layers import TILINGS
from rapa_lib.training import load_checkpoint, one_cycle_sgd
from rapa_lib.training.averaging import TileAveraging, TimeAverage

SHORT = TrainConfig(epochs=3, batch_size=16, learning_rate=0.02, mirror=True, max_shift=1, seed=4)
CLIPPED = pytest.mark.filterwarnings("ignore:.* were clipped")
N_TILES = (7, 3, 1)  # 64, 16 and 4 patches: neither 7 nor 3 divides its own


def run(config=SHORT, **changes):
    """Train a fresh tiny network; return it and its training."""
    network = tiny_network(**changes)
    return network, train(network, tiny_dataset(), config, progress=False)


def untimed(training):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in training.history]


def replicated(ordinary, tiling, n_tiles=N_TILES):
    """An ordinary network's convolutions on tiles that start as its kernels."""
    names = [n for n, m in ordinary.named_modules() if isinstance(m, nn.Conv2d)]
    return convert_to_rapa(ordinary, dict(zip(names, n_tiles, strict=True)), tiling)


@pytest.mark.parametrize("tiling", [name for name in TILINGS if name != "none"])
def test_averaged_after_every_step_tiles_learn_as_the_ordinary_network(tiling):
    """51 steps of SGD with momentum and weight decay: every weight agrees, merged or not."""
    ordinary = tiny_network(tiling="none", init_seed=1).double()
    tiled = replicated(ordinary, tiling)
    config = {"epochs": 17, "batch_size": 16, "learning_rate": 0.1, "weight_decay": 0.02, "seed": 3}
    start = [p.detach().clone() for p in ordinary.parameters()]
    in_double(ordinary, TrainConfig(**config))
    in_double(tiled, TrainConfig(**config, sync_every=1))
    for layer in (m for m in tiled.modules() if isinstance(m, RapaConv2d)):
        assert torch.equal(layer.weight, layer.weight[:1].expand_as(layer.weight))
    merged = merge_tiles(tiled).state_dict()
    for name, expected in ordinary.state_dict().items():
        torch.testing.assert_close(merged[name], expected, rtol=1e-9, atol=1e-11)
    trained = [p.detach() for p in ordinary.parameters()]
    moved = [float((p - p0).abs().max()) for p, p0 in zip(trained, start, strict=True)]
    assert min(moved) > 1e-3


class Doubled(nn.Module):
    """A network in float64, so that kinks do not part two trainings that differ by rounding."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.double())


def in_double(network, config):
    train(Doubled(network), tiny_dataset(), config, progress=False)


def test_in_single_precision_the_same_holds_to_its_rounding():
    ordinary = tiny_network(tiling="none", init_seed=1)
    tiled = replicated(ordinary, "random")
    config = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}
    train(ordinary, tiny_dataset(), TrainConfig(**config), progress=False)
    train(tiled, tiny_dataset(), TrainConfig(**config, sync_every=1), progress=False)
    for name, expected in ordinary.state_dict().items():
        found = merge_tiles(tiled).state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def slowly_averaged(network, config, steps):
    """Slow reference: the tiles' own SGD in plain loops, averaged tile by tile."""
    optimizer, scheduler = one_cycle_sgd(network, config, steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        x = torch.randn(8, 2, 8, 8, generator=generator)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
        yield step, optimizer


@pytest.mark.parametrize(("every", "coupling"), [(3, 0.0), (0, 0.25), (2, 0.5), (0, 1.0)])
def test_what_is_averaged_and_when_against_loops_over_tiles(every, coupling):
    config = TrainConfig(epochs=1, learning_rate=0.1, sync_every=every, coupling=coupling)
    ours, slow = (tiny_network(tiling="random_fixed", tile_init="independent") for _ in range(2))
    steps = 7
    averaging = None
    walks = slowly_averaged(ours, config, steps), slowly_averaged(slow, config, steps)
    for (step, optimizer), (_, other) in zip(*walks, strict=True):
        averaging = averaging or TileAveraging(ours, optimizer, config)
        averaging.after_step(step)
        for layer in (m for m in slow.modules() if isinstance(m, RapaConv2d) and m.n_tiles > 1):
            for parameter in layer.parameters():
                tiles = parameter.data
                mean = sum(tile.clone() for tile in tiles) / len(tiles)
                for tile in tiles:
                    tile += coupling * (mean - tile)
                if every and step % every == 0:
                    velocity = other.state[parameter]["momentum_buffer"]
                    for values in (tiles, velocity):
                        mean = sum(tile.clone() for tile in values) / len(values)
                        for tile in values:
                            tile.copy_(mean)
    for name, expected in slow.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, rtol=1e-4, atol=1e-5)


def test_averaging_keeps_the_mean_and_leaves_equal_tiles_alone_to_the_bit():
    network = tiny_network(tile_init="identical")
    optimizer, _ = one_cycle_sgd(network, SHORT, 3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    averaging = TileAveraging(network, optimizer, TrainConfig(sync_every=1, coupling=0.3))
    averaging.after_step(1)
    assert same_bits(network.state_dict(), before)
    assert [row["squared_deviation"] for row in averaging.take_report()] == [0, 0]


def test_dead_tiles_are_neither_read_nor_written():
    network = tiny_network(tile_init="independent")
    layer = network.features[0][0]
    layer.set_living([0, 2])
    before = layer.weight.detach().clone()
    optimizer, _ = one_cycle_sgd(network, SHORT, 3)
    TileAveraging(network, optimizer, TrainConfig(sync_every=1)).after_step(1)
    mean = (before[0] + before[2]) / 2
    for i in range(4):
        torch.testing.assert_close(layer.weight[i], mean if i in (0, 2) else before[i])


def test_the_report_has_rates_and_spreads_before_each_averaging():
    network, training = run(
        TrainConfig(epochs=2, batch_size=16, learning_rate=0.02, sync_every=2, seed=1),
        tile_init="identical",
    )
    first, second = (row["averagings"] for row in training.history)
    assert [(row["layer"], row["n_tiles"], row["averagings"]) for row in first] == [
        ("features.0.0", 4, 1), ("features.1.0", 2, 1),
    ]  # fmt: skip
    assert [row["averagings"] for row in second] == [2, 2]  # after steps 4 and 6
    optimizer, scheduler = one_cycle_sgd(network, TrainConfig(epochs=2, learning_rate=0.02), 3)
    optimizer.step()
    rates = []
    for _ in range(6):
        scheduler.step()
        rates.append(optimizer.param_groups[-1]["lr"] / optimizer.param_groups[-1]["max_lr"])
    expected = [(0.02 * 4 * rates[i - 1]) ** 2 for i in (4, 6)]
    assert second[0]["squared_rate"] == pytest.approx(sum(expected) / 2)
    assert all(row["squared_deviation"] > 0 for row in first)


def test_plain_trainings_report_nothing_and_have_the_bits_that_they_had():
    network, training = run()
    assert "averagings" not in training.history[0]
    other, _ = run(replace(SHORT, sync_every=1000))
    assert same_bits(network.state_dict(), other.state_dict())


def test_the_mean_over_the_last_epochs_against_a_list_of_all_steps():
    network = nn.Linear(3, 2)
    average, seen = TimeAverage(network), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for parameter in network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        seen.append([p.detach().clone() for p in network.parameters()])
        average.after_step()
    average.apply()
    for i, parameter in enumerate(network.parameters()):
        torch.testing.assert_close(parameter.data, torch.stack([s[i] for s in seen]).mean(0))


def test_the_averaged_network_is_what_is_left_tested_and_its_statistics_fit():
    plain, _ = run()
    network, training = run(replace(SHORT, average_last=2))
    assert not torch.equal(network.classifier.weight, plain.classifier.weight)
    whole, _ = run(replace(SHORT, average_last=3))
    assert not torch.equal(network.classifier.weight, whole.classifier.weight)
    norm = network.features[0][2]
    assert norm.num_batches_tracked == 1  # one pass over all images, nothing of training
    assert training.history[-1]["test_error"] is not None


@pytest.mark.parametrize("changes", [{"sync_every": 2}, {"coupling": 0.1, "average_last": 2}])
def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path, changes):
    config = replace(SHORT, **changes)
    undisturbed, expected = run(config)

    def stop(network, epoch):
        if epoch == 3:
            raise KeyboardInterrupt

    for hook, error in ((stop, pytest.raises(KeyboardInterrupt)), (lambda *_: None, None)):
        stop.__qualname__ = hook.__qualname__ = "same"  # a checkpoint knows its hook by this
        network = tiny_network()
        arguments = {"checkpoint": tmp_path / "resume.pt", "progress": False, "on_epoch": hook}
        if error is not None:
            with error:
                train(network, tiny_dataset(), config, **arguments)
        else:
            training = train(network, tiny_dataset(), config, **arguments)
    assert same_bits(network.state_dict(), undisturbed.state_dict())
    assert untimed(training) == untimed(expected)
    assert len(load_checkpoint(tmp_path / "resume.pt")["history"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sync_every": -1}, "sync_every: got -1, allowed: at least 0"),
        ({"coupling": 1.5}, "coupling: got 1.5, allowed: finite, at least 0 and at most 1"),
        ({"average_last": 11}, "average_last: got 11, allowed: at most epochs = 10"),
        ({"sync_write": "ink"}, "sync_write: got 'ink', allowed: program, pulses"),
        ({"sync_reads": 0}, "sync_reads: got 0, allowed: at least 1"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainConfig(**arguments)


@CLIPPED
@pytest.mark.parametrize("changes", [{"coupling": 0.5}, {"average_last": 1}])
def test_what_analog_tiles_cannot_do_is_refused(changes):
    network = convert_to_analog(tiny_network(), rpu_baseline())
    with pytest.raises(ValueError, match=r"allowed for weights on analog tiles: 0"):
        train(
            network, tiny_dataset(), TrainConfig(epochs=1, batch_size=16, **changes), progress=False
        )


@CLIPPED
@pytest.mark.parametrize("write", ["program", "pulses"])
def test_analog_tiles_are_averaged_in_training(write):
    config = TrainConfig(
        epochs=1, batch_size=16, learning_rate=0.01, sync_every=3, sync_write=write, seed=1
    )
    spreads = {}
    for every in (0, 3):
        torch.manual_seed(0)
        network = convert_to_analog(tiny_network(tile_init="independent"), quiet())
        train(network, tiny_dataset(), replace(config, sync_every=every), progress=False)
        layer = network.features[0][0]
        weight = layer.weight.detach()
        spreads[every] = float((weight - weight.mean(0)).square().sum())
    assert spreads[3] < spreads[0] * (0.1 if write == "program" else 0.9)


def quiet():
    """The baseline's devices with a periphery that adds little noise."""
    config = rpu_baseline()
    return replace(
        config,
        forward=replace(config.forward, out_noise=1e-3),
        backward=replace(config.backward, out_noise=1e-3),
    )


def test_ideal_devices_are_averaged_exactly():
    network = convert_to_analog(tiny_network(tile_init="independent"), ideal())
    optimizer, _ = one_cycle_sgd(network, SHORT, 3)
    before = network.features[0][0].weight.detach().clone()
    TileAveraging(network, optimizer, TrainConfig(sync_every=1)).after_step(1)
    after = network.features[0][0].weight.detach()
    torch.testing.assert_close(after, before.mean(0).expand_as(before))


@CLIPPED
def test_dead_analog_tiles_are_named():
    network = convert_to_analog(tiny_network(), rpu_baseline())
    network.features[0][0].set_living([0, 1])
    optimizer, _ = one_cycle_sgd(network, SHORT, 3)
    with pytest.raises(ValueError, match=r"^sync_every: tiles of layer 'features\.0\.0' are dead"):
        TileAveraging(network, optimizer, TrainConfig(sync_every=1)).after_step(1)
