"""The page that draws assignments, in a real browser, beside the library that it shows."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from rapa_lib import draw_assignment
from rapa_lib.layers.perforated import nearest_position

PAGE = Path(__file__).parents[2] / "docs/assignments.html"
PLANES = [(1, 1), (1, 7), (9, 1), (4, 4), (5, 8), (13, 7), (16, 16), (32, 32), (6, 40), (31, 64)]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(chromium):
    page = chromium.new_page()
    failed = []
    page.on("pageerror", lambda error: failed.append(error))
    page.on("request", lambda request: failed.append(request.url))
    page.goto(PAGE.as_uri())
    yield page
    assert not [what for what in failed if not str(what).startswith("file:")]  # nor a network's
    page.close()


def drawn(page, tiling, height, width, n_tiles, seed=0):
    return page.evaluate("(a) => assign(...a)", [tiling, height, width, n_tiles, seed])


def counts(height, width):
    n = height * width
    return sorted({m for m in (1, 2, 3, 4, 7, 16, 20, 64, n // 2, n - 1, n) if 1 <= m <= n})


@pytest.mark.parametrize("tiling", ["image", "alternate"])
@pytest.mark.parametrize(("height", "width"), PLANES)
def test_fixed_tilings_are_the_librarys(page, tiling, height, width):
    for n_tiles in counts(height, width):
        (expected,) = draw_assignment(tiling, 1, height, width, n_tiles).tolist()
        assert drawn(page, tiling, height, width, n_tiles) == expected, n_tiles


def test_none_is_one_tile(page):
    assert drawn(page, "none", 3, 5, 1) == draw_assignment("none", 1, 3, 5, 1)[0].tolist()


@pytest.mark.parametrize("tiling", ["random", "random_fixed"])
@pytest.mark.parametrize(("height", "width"), PLANES)
def test_random_draws_are_balanced(page, tiling, height, width):
    for n_tiles in counts(height, width):
        loads = Counter(drawn(page, tiling, height, width, n_tiles, seed=n_tiles))
        assert sum(loads.values()) == height * width
        assert set(loads) == set(range(n_tiles))
        assert max(loads.values()) - min(loads.values()) <= 1


def test_every_draw_of_a_small_plane_is_equally_likely(page):
    # Three patches on two tiles: 2 choices of the busy tile × 3 of the lone patch.
    draws = page.evaluate(
        "(n) => Array.from({length: n}, (_, i) => assign('random', 1, 3, 2, i).join(''))", 6000
    )
    found = Counter(draws)
    assert len(found) == 6
    chi2 = sum((n - 1000) ** 2 / 1000 for n in found.values())
    assert chi2 < 20.5  # five degrees of freedom, one in a thousand


def test_perforation_computes_its_share_and_fills_from_the_nearest(page):
    for height, width, n_tiles in [(5, 8, 3), (16, 16, 8), (9, 1, 4)]:
        tiles = drawn(page, "perforated", height, width, n_tiles, seed=1)
        computed = [p for p, tile in enumerate(tiles) if tile == 0]
        assert len(computed) == math.ceil(height * width / n_tiles)
        assert set(tiles) <= {0, -1}
        filled = page.evaluate("(a) => nearestPosition(...a)", [computed, height, width])
        assert filled == nearest_position(torch.tensor([computed]), height, width)[0].tolist()


def test_the_controls_show_the_acceleration_and_a_tiles_patches(page):
    page.goto(PAGE.as_uri() + "#tiling=image&tiles=4&height=8&width=8")
    page.reload()
    assert "64 patches on 4 arrays: 16 steps, 4 times as fast" in page.inner_text("#speed")
    box = page.locator("#plane").bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + 2)
    assert "Tile 0 computes 16 of 64 patches, that in row 1, column 1" in page.inner_text("#chosen")
    page.keyboard.press("ArrowRight")
    assert "column 2" in page.inner_text("#chosen")
    page.fill("#tiles", "65")
    assert page.inner_text("#problem") == "tiles: got 65, allowed: 1 to 64"
    page.fill("#tiles", "64")
    assert "1 step, 64 times as fast" in page.inner_text("#speed")
    page.select_option("#tiling", "random")
    before = page.evaluate("plane.join()")
    page.click("#again")
    assert page.evaluate("plane.join()") != before
    page.select_option("#tiling", "random_fixed")
    before = page.evaluate("plane.join()")
    page.click("#again")
    assert page.evaluate("plane.join()") == before


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_stands_out_of_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
