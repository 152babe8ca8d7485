"""A network's shape is known, and refused, before there is a network or an image."""

from dataclasses import fields
from inspect import signature

import numpy as np
import pytest

from rapa_lib import RapaConvNet
from rapa_lib.networks import NetworkShape, kind_names, network_kind


def test_its_fields_are_the_network_s_arguments_with_the_same_defaults():
    parameters = list(signature(RapaConvNet).parameters.values())[3:]
    assert {p.name: p.default for p in parameters} == {
        one.name: getattr(NetworkShape(), one.name) for one in fields(NetworkShape)
    }


def test_lists_and_numpy_s_numbers_become_tuples_of_python_s():
    shape = NetworkShape(n_tiles=[np.int64(4), 2, 1], noise=[np.float32(0.5), 0, 1])
    assert shape == NetworkShape(n_tiles=(4, 2, 1), noise=(0.5, 0.0, 1.0))
    assert {type(n) for n in shape.n_tiles} == {int}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tiling": "randon"}, ValueError, "tiling: got 'randon', allowed: none"),
        ({"n_tiles": (16, 4)}, ValueError, r"n_tiles: got \(16, 4\), expected 3 numbers"),
        ({"n_tiles": (0, 4, 1)}, ValueError, "n_tiles: got 0, allowed: at least 1"),
        ({"kernel_sizes": (5,)}, ValueError, r"kernel_sizes: got \(5,\), expected 3 numbers"),
        ({"kernel_sizes": (5, 5, 4)}, ValueError, r"kernel_sizes: .*allowed: odd sizes"),
        ({"channels": ()}, ValueError, r"channels: got \(\), expected at least one"),
        ({"tiling": "noisy", "noise": (1, 1)}, ValueError, "noise: got .* expected 3 numbers"),
        ({"noise": (-1.0,)}, ValueError, r"noise: got -1\.0"),
        ({"pooling": "min"}, ValueError, "pooling: got 'min'"),
    ],
)
def test_what_is_not_allowed_is_named(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        NetworkShape(**arguments)


def test_noise_counts_only_where_it_is_heeded():
    assert NetworkShape(noise=()).noise == ()


@pytest.mark.parametrize(
    ("size", "planes"),
    [
        (32, [(32, 32), (16, 16), (8, 8), (4, 4)]),
        ((7, 10), [(7, 10), (4, 5), (2, 3), (1, 2)]),
    ],
)
def test_planes_halve_from_convolution_to_convolution(size, planes):
    assert NetworkShape(tiling="none").plane_sizes(size) == planes


@pytest.mark.parametrize("name", kind_names())
def test_more_tiles_than_patches_are_refused_where_tiles_count(name):
    shape = NetworkShape(tiling=name, n_tiles=(64, 17, 1), noise=(0, 0, 0))
    if "n_tiles" in network_kind(name).heeds:
        message = r"^n_tiles: got 17 for convolution 2, allowed: 1 to 16, its patches \(4 × 4\)"
        with pytest.raises(ValueError, match=message):
            shape.plane_sizes(8)
    else:
        assert len(shape.plane_sizes(8)) == 4


@pytest.mark.parametrize("size", [(8, 8, 8), (8,), "8", 0])
def test_an_image_size_that_is_none_is_named(size):
    with pytest.raises((ValueError, TypeError), match=r"^image_size: got"):
        NetworkShape().plane_sizes(size)


@pytest.mark.parametrize("name", kind_names())
def test_sites_follow_one_another_and_have_the_kind_s_tiles(name):
    shape = NetworkShape(name, n_tiles=(4, 2, 1), channels=(5, 6, 7), kernel_sizes=(1, 3, 5))
    sites = shape.sites(2)
    assert [site.in_channels for site in sites] == [2, 5, 6]
    assert [site.out_channels for site in sites] == [5, 6, 7]
    assert [site.kernel_size for site in sites] == [1, 3, 5]
    tiles = [1, 1, 1] if network_kind(name).one_tile else [4, 2, 1]
    assert [site.n_tiles for site in sites] == tiles
    heeds = network_kind(name).heeds
    assert {site.dropout for site in sites} == {0.1 if name == "dropout" else 0.0}
    assert [site.noise for site in sites] == ([0.85, 0.95, 0.0] if "noise" in heeds else [0.0] * 3)


def test_an_enlarged_shape_differs_in_its_channels_alone():
    shape = NetworkShape(tiling="enlarged", n_tiles=(4, 2, 1), channels=(4, 4, 6))
    larger = shape.enlarged(2, 3, (1, 1))
    assert all(a > b for a, b in zip(larger.channels, shape.channels, strict=True))
    assert NetworkShape(**vars(larger) | {"channels": shape.channels}) == shape
