"""Tiki-Taka, buffered and chopped, and mixed precision: aihwkit 1.2.0, and slow definitions."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_analog_agreement import assert_agrees, beyond
from test_analog_layers import analog_network, steps
from test_device_agreement import ALIKE, REFERENCE, halves, reference
from tiny import same_bits

from rapa_lib.analog import (
    COMPOUNDS,
    AnalogSGD,
    AnalogTileArray,
    BufferedTransferCompound,
    ChoppedTransferCompound,
    ConstantStepDevice,
    IOParameters,
    MixedPrecisionCompound,
    SoftBoundsDevice,
    TileConfig,
    TransferCompound,
    UpdateParameters,
)

SOFT = SoftBoundsDevice(**ALIKE)
PAIR = {"fast_device": SOFT, "slow_device": SOFT, "transfer_every": 2}
KINDS = {
    "transfer": TransferCompound(**PAIR),
    "buffered": BufferedTransferCompound(**PAIR),
    "chopped": ChoppedTransferCompound(**PAIR),
}
READ_AT = (10, 50, 200)
# No noise, every pulse certain: what is sent is the whole number of steps.
EXACT = SoftBoundsDevice(**ALIKE, dw_min_std=0)


def changes(name, method, updates, n):
    """Visible weight changes of n tiles after the reference's updates, at READ_AT."""
    config = TileConfig(device=KINDS[name], update=UpdateParameters(method=method))
    tiles = AnalogTileArray(n, 10, 8, config, seed=0)
    start = reference()["W0"]
    tiles.program(start.expand(n, -1, -1))
    x, d = (reference()[part].expand(n, -1) for part in "xd")
    seen = []
    for update in range(1, updates + 1):
        tiles.update(x, d, 0.05, torch.arange(n))
        if update in READ_AT:
            seen.append((tiles.read() - start).double())
    return torch.stack(seen, 1)


@pytest.mark.skipif(not Path(REFERENCE).is_file(), reason="no reference beside the checkout")
@pytest.mark.parametrize(("method", "updates", "n"), [("exact", 200, 400), ("sequential", 10, 300)])
@pytest.mark.parametrize("name", KINDS)
def test_compounds_have_the_means_and_spreads_of_the_reference(name, method, updates, n):
    torch.manual_seed(0)
    seen = sum(at <= updates for at in READ_AT)
    where = f"compound/{name}"
    mean, std = (reference()[f"{where}/{part}"].double()[:seen] for part in ("mean", "std"))
    measured = int(reference()[f"{where}/n"])
    draws = changes(name, method, updates, n)
    if beyond(draws, mean, std, measured, 1e-7):  # by chance; see test_device_agreement
        draws = torch.cat([draws, *(changes(name, method, updates, n) for _ in range(2))])
    for ours, theirs, spread in zip(*map(halves, (draws, mean, std)), strict=True):
        assert_agrees(ours, theirs, spread, measured, rounding=1e-7)


def test_a_mini_batch_of_vectors_is_transferred_as_often_as_vector_by_vector():
    torch.manual_seed(0)
    n, some = 60, torch.arange(60).repeat(4)
    x, d = torch.randn(4, 6).repeat_interleave(n, 0), torch.randn(4, 5).repeat_interleave(n, 0) / 4
    found = {}
    for method in ("exact", "sequential"):
        compound = ChoppedTransferCompound(**PAIR | {"transfer_every": 2}, fast_lr=0.1)
        config = TileConfig(device=compound, update=UpdateParameters(method=method))
        tiles = AnalogTileArray(n, 6, 5, config, seed=0)
        for _ in range(3):
            tiles.update(x, d, 0.1, some)
        assert (tiles._compound.column == 0).all()  # six columns were read
        found[method] = tiles.read().double()
    error = ((found["exact"].var(0) + found["sequential"].var(0)) / n).sqrt() + 1e-7
    assert ((found["exact"].mean(0) - found["sequential"].mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("reads", [1, 2, 3, 4])
def test_a_transfer_without_noise_moves_whole_steps_of_the_buffer(reads):
    """By hand: read a column, add it to the buffer, send one pulse where a step is full."""
    update = UpdateParameters(10, False, False)
    compound = BufferedTransferCompound(
        fast_device=EXACT, slow_device=EXACT, transfer_forward=IOParameters.perfect(), fast_lr=0.01,
        n_reads_per_transfer=reads,
    )  # fmt: skip
    tiles = AnalogTileArray(1, 3, 2, TileConfig(device=compound, update=update), dtype=torch.double)
    lr, fast, buffer, slow = 0.07, torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)
    fast, buffer, slow = fast.double(), buffer.double(), slow.double()
    for turn in range(12):
        tiles.update(torch.ones(1, 3).double(), -torch.ones(1, 2).double(), lr)
        for _ in range(10):  # rate 0.01 and ten slots: every slot fires
            fast += 0.001 * (1 - fast / 0.6)
        for read in range(reads):
            column = (reads * turn + read) % 3
            buffer[:, column] += lr * fast[:, column]
            due = (buffer[:, column] / 0.001).trunc().clamp(-1, 1)
            slow[:, column] += due * 0.001 * (1 - slow[:, column] / 0.6)
            buffer[:, column] *= torch.where(due != 0, 0.1, 1.0)
    torch.testing.assert_close(tiles._compound.fast[0].T, fast)
    torch.testing.assert_close(0.001 * tiles._compound.buffer[0].T, buffer)
    torch.testing.assert_close(tiles.read()[0], slow)
    assert slow.abs().max() > 0.003


def test_mixed_precision_sends_whole_steps_and_keeps_the_rest():
    torch.manual_seed(0)
    device = ConstantStepDevice(**ALIKE, dw_min_std=0, w_max=9, w_min=-9)
    compound = MixedPrecisionCompound(device, transfer_every=2)
    tiles = AnalogTileArray(2, 6, 4, TileConfig(device=compound), seed=0, dtype=torch.double)
    total = torch.zeros(2, 4, 6).double()
    for turn in range(1, 7):
        x, d = torch.randn(8, 6).double(), torch.randn(8, 4).double() / 3
        groups = torch.arange(8) % 2
        tiles.update(x, d, 0.01, groups)
        total -= 0.01 * torch.einsum(
            "po,pi,pt->toi", d, x, torch.nn.functional.one_hot(groups).double()
        )
        if turn % 2 == 0:
            kept = tiles._compound.chi.transpose(1, 2)
            assert (kept.abs() < 0.001).all()
            sent = total - kept  # whole steps; the pulses for them are drawn
            torch.testing.assert_close(sent / 0.001, (sent / 0.001).round())
    # Pulse trains of up to 31 slots carry at most about 31 steps, with binomial noise.
    assert torch.corrcoef(torch.stack([tiles.read().flatten(), sent.flatten()]))[0, 1] > 0.98
    assert (tiles.read() - sent).mean().abs() < 0.002


def test_products_read_gamma_times_the_fast_devices_too():
    torch.manual_seed(0)
    compound = TransferCompound(SOFT, SOFT, gamma=0.5, transfer_every=0)
    tiles = AnalogTileArray(1, 6, 5, TileConfig(device=compound), seed=0, dtype=torch.double)
    tiles.program(torch.full((1, 5, 6), 0.2).double())
    tiles.update(torch.ones(1, 6).double(), -torch.ones(1, 5).double(), 0.02)
    fast = tiles._compound.fast.transpose(1, 2)
    assert (fast > 0).all()
    torch.testing.assert_close(tiles.read(), 0.2 + 0.5 * fast)


@pytest.mark.filterwarnings("ignore:.*weights are outside the bounds")
@pytest.mark.parametrize("name", COMPOUNDS)
def test_networks_on_compounds_learn_and_resume_with_the_same_bits(name):
    more = {"transfer_every": 60.0} if name.startswith("Chopped") else {}
    config = TileConfig(device=COMPOUNDS[name](**more))
    assert TileConfig.from_yaml(config.to_yaml()) == config
    network = analog_network(config)
    optimizer = AnalogSGD(network, lr=0.05, momentum=0.9)
    before = [layer.weight.clone() for layer in network.modules() if hasattr(layer, "points")]
    steps(network, optimizer, 4)
    after = [layer.weight for layer in network.modules() if hasattr(layer, "points")]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    steps(network, optimizer, 2, begin=4)
    resumed = analog_network(config)
    again = AnalogSGD(resumed, lr=0.05, momentum=0.9)
    file.seek(0)
    for part, state in zip((resumed, again), torch.load(file), strict=True):
        part.load_state_dict(state)
    steps(resumed, again, 2, begin=4)
    assert same_bits(resumed.state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TransferCompound(3), TypeError, "fast_device: got 3, expected PulsedDevice"),
        (lambda: TransferCompound(gamma=-1), ValueError, "gamma: got -1"),
        (lambda: replace(KINDS["transfer"], transfer_forward=IOParameters()), ValueError,
         "transfer_forward.bound_management: got 'iterative', allowed: none"),
        (lambda: ChoppedTransferCompound(n_reads_per_transfer=2), ValueError,
         "n_reads_per_transfer: got 2, allowed with choppers: 1"),
        (lambda: MixedPrecisionCompound("soft"), TypeError, "device: got 'soft', expected Pulsed"),
        (lambda: TileConfig.from_dict({"device": {"kind": "TransferCompound", "slow_device": 1}}),
         TypeError, "device.slow_device: got 1, expected a mapping"),
    ],
)  # fmt: skip
def test_bad_compounds_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
