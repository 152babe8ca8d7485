import itertools
import math

import pytest
import torch

from rapa_lib import TILINGS, draw_assignment, register_tiling
from rapa_lib.layers.tiling import _hilbert_walk

BALANCED = ["image", "alternate", "random", "random_fixed"]
PLANES = [(1, 1), (1, 7), (4, 4), (5, 3), (6, 9), (8, 8)]


@pytest.mark.parametrize("tiling", BALANCED)
@pytest.mark.parametrize("plane", PLANES)
def test_every_number_of_tiles_gives_balanced_loads(tiling, plane):
    n_patches = plane[0] * plane[1]
    for n_tiles in range(1, n_patches + 1):
        assignment = draw_assignment(tiling, 3, *plane, n_tiles)
        assert assignment.shape == (3, n_patches)
        assert assignment.dtype == torch.long
        for tiles in assignment:
            loads = torch.bincount(tiles, minlength=n_tiles)
            assert len(loads) == n_tiles
            assert loads.max() - loads.min() <= 1


def test_none_is_one_tile():
    assert draw_assignment("none", 2, 3, 4, 1).tolist() == [[0] * 12] * 2
    with pytest.raises(ValueError, match="'none' has one tile"):
        draw_assignment("none", 2, 3, 4, 2)


@pytest.mark.parametrize("plane", [(3, 3), (4, 4), (5, 8), (7, 7), (8, 8), (9, 12)])
def test_image_blocks_are_contiguous(plane):
    """By flood fill. A diagonal touch counts only where a side is odd (see _hilbert_walk)."""
    height, width = plane
    even = height % 2 == 0 and width % 2 == 0
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    if not even:
        steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    for n_tiles in range(1, height * width + 1):
        tiles = draw_assignment("image", 1, height, width, n_tiles).view(height, width).tolist()
        todo = {(y, x) for y in range(height) for x in range(width)}
        n_blocks = 0
        while todo:
            n_blocks += 1
            front = [todo.pop()]
            while front:
                y, x = front.pop()
                for dy, dx in steps:
                    to = (y + dy, x + dx)
                    if to in todo and tiles[to[0]][to[1]] == tiles[y][x]:
                        todo.remove(to)
                        front.append(to)
        assert n_blocks == n_tiles


def test_image_blocks_are_squares_where_they_can_be():
    tiles = draw_assignment("image", 1, 32, 32, 16).view(4, 8, 4, 8).transpose(1, 2).flatten(2)
    assert (tiles == tiles[:, :, :1]).all()


@pytest.mark.parametrize("height", range(1, 14))
def test_hilbert_walk_visits_each_position_once_by_steps_to_neighbours(height):
    for width in range(1, 14):
        walk = [divmod(p, width) for p in _hilbert_walk(height, width)]
        assert len(set(walk)) == len(walk) == height * width
        steps = [(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.pairwise(walk)]
        diagonal = steps.count((1, 1))
        assert diagonal <= (1 if height % 2 or width % 2 else 0)
        assert all(step in ((0, 1), (1, 0)) for step in steps if step != (1, 1))


@pytest.mark.parametrize("plane", [(8, 8), (5, 6), (6, 5), (7, 12), (16, 16)])
def test_alternate_gives_neighbours_to_different_tiles(plane):
    for n_tiles in range(2, plane[0] * plane[1] + 1):
        tiles = draw_assignment("alternate", 1, *plane, n_tiles).view(plane)
        assert (tiles[1:] != tiles[:-1]).all()
        assert (tiles[:, 1:] != tiles[:, :-1]).all()


def test_alternate_keeps_equal_tiles_apart_and_repeats():
    tiles = draw_assignment("alternate", 1, 32, 32, 16).view(32, 32)
    assert torch.equal(tiles[:16, :16], tiles[16:, 16:])
    places = (tiles == 3).nonzero().double()
    distances = torch.cdist(places, places).fill_diagonal_(math.inf)
    assert distances.min() >= 4  # √16: as far as a square pattern would keep them


def test_random_is_fresh_for_every_image_and_draw_and_follows_the_seed():
    torch.manual_seed(1)
    first = draw_assignment("random", 2, 8, 8, 4)
    second = draw_assignment("random", 2, 8, 8, 4)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(first, draw_assignment("random", 2, 8, 8, 4))
    generator = torch.Generator().manual_seed(5)
    a = draw_assignment("random", 2, 8, 8, 4, generator=generator)
    b = draw_assignment("random", 2, 8, 8, 4, generator=generator.manual_seed(5))
    assert torch.equal(a, b)


@pytest.mark.parametrize("n_tiles", [4, 5])
def test_random_gives_every_patch_to_every_tile_and_every_pair_alike(n_tiles):
    """Frequencies of tiles, and of pairs of tiles at two patches, against exact ones."""
    torch.manual_seed(0)
    n_draws, n_patches = 40_000, 12
    assignment = draw_assignment("random", n_draws, 3, 4, n_tiles)
    for patch in range(n_patches):
        counts = torch.bincount(assignment[:, patch], minlength=n_tiles)
        assert (counts / n_draws - 1 / n_tiles).abs().max() < 5 * math.sqrt(0.25 / n_draws)
    # Loads l_t: P(equal) = Σ l_t (l_t - 1) / (L (L - 1)), pairs of unequal tiles all alike.
    loads = [n_patches // n_tiles + (t < n_patches % n_tiles) for t in range(n_tiles)]
    equal = sum(load * (load - 1) for load in loads) / (n_patches * (n_patches - 1))
    pairs = torch.bincount(assignment[:, 2] * n_tiles + assignment[:, 7], minlength=n_tiles**2)
    expected = torch.full((n_tiles, n_tiles), (1 - equal) / (n_tiles * (n_tiles - 1)))
    expected.fill_diagonal_(equal / n_tiles)
    error = (pairs.view(n_tiles, n_tiles) / n_draws - expected).abs()
    assert error.max() < 5 * math.sqrt(expected.max() / n_draws)


def test_random_fixed_is_one_permutation_for_all_images():
    assignment = draw_assignment("random_fixed", 3, 8, 8, 4)
    assert torch.equal(assignment[0], assignment[1])
    assert not torch.equal(assignment[0], draw_assignment("random_fixed", 1, 8, 8, 4)[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("spiral", 1, 2, 2, 1), ValueError, "tiling: got 'spiral', allowed: none, image"),
        (("random", 1, 2, 2, 5), ValueError, "n_tiles: got 5.*allowed: 1 to 4"),
        (("random", 1, 2, 2, 0), ValueError, "n_tiles: got 0"),
        (("random", 1, 2, 2, 1.5), TypeError, "n_tiles: got 1.5"),
        (("random", -1, 2, 2, 1), ValueError, "batch: got -1"),
        (("random", 1, 0, 2, 1), ValueError, "height: got 0"),
        (("random", 1, 2, True, 1), TypeError, "width: got True"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        draw_assignment(*arguments)


def test_a_new_scheme_is_one_function(monkeypatch):
    monkeypatch.setattr("rapa_lib.layers.tiling.TILINGS", TILINGS.copy())
    from rapa_lib.layers import tiling

    @register_tiling("columns")
    def columns(batch, height, width, n_tiles, generator):
        return (torch.arange(height * width) % width % n_tiles).expand(batch, -1)

    assert draw_assignment("columns", 1, 2, 4, 2).tolist() == [[0, 1, 0, 1] * 2]
    assert not tiling.TILINGS["columns"].redraw
    with pytest.raises(ValueError, match="'columns' is a registered tiling"):
        register_tiling("columns")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b, h, w, n, g: torch.zeros(b, h, w, dtype=torch.long),
        lambda b, h, w, n, g: torch.zeros(b, h * w),
        lambda b, h, w, n, g: torch.full((b, h * w), n),
    ],
)
def test_a_scheme_that_returns_no_assignment_is_refused(monkeypatch, wrong):
    monkeypatch.setattr("rapa_lib.layers.tiling.TILINGS", TILINGS.copy())
    register_tiling("wrong")(wrong)
    with pytest.raises(ValueError, match="tiling 'wrong'"):
        draw_assignment("wrong", 2, 3, 3, 2)


# --- Living tiles -----------------------------------------------------------------------------


def loads_of(assignment, living):
    """Patches of each living tile, image by image; -1 and dead tiles must not occur."""
    counts = torch.stack([torch.bincount(row, minlength=max(living) + 1) for row in assignment])
    assert int(counts.sum()) == assignment.numel() == int(counts[:, living].sum())
    return counts[:, living]


@pytest.fixture
def third_party(monkeypatch):
    """Two tilings of somebody else: one drawn anew, one kept."""
    monkeypatch.setattr("rapa_lib.layers.tiling.TILINGS", TILINGS.copy())

    @register_tiling("rows")
    def rows(batch, height, width, n_tiles, generator):
        return (torch.arange(height * width) * n_tiles // (height * width)).expand(batch, -1)

    @register_tiling("shifted", redraw=True)
    def shifted(batch, height, width, n_tiles, generator):
        start = torch.randint(n_tiles, (batch, 1), generator=generator)
        return (torch.arange(height * width) + start) % n_tiles


@pytest.mark.parametrize("tiling", [*BALANCED, "rows", "shifted"])
@pytest.mark.parametrize("plane", [(5, 3), (6, 9), (8, 8)])
def test_rerouted_loads_differ_by_at_most_one_patch(tiling, plane, third_party):
    torch.manual_seed(0)
    n_patches = plane[0] * plane[1]
    for n_tiles in {2, 3, 4, 7, n_patches // 2, n_patches}:
        for n_living in {1, n_tiles // 2, n_tiles - 1}:
            living = torch.randperm(n_tiles)[:n_living].sort().values.tolist()
            assignment = draw_assignment(tiling, 3, *plane, n_tiles, living=living)
            loads = loads_of(assignment, living)
            assert int(loads.max()) == -(-n_patches // n_living)
            assert int(loads.max() - loads.min()) <= 1


@pytest.mark.parametrize("tiling", ["image", "alternate", "rows"])
def test_living_tiles_of_a_kept_tiling_keep_their_patches(tiling, third_party):
    before = draw_assignment(tiling, 2, 7, 5, 6)
    living = [0, 2, 5]
    after = draw_assignment(tiling, 2, 7, 5, 6, living=living)
    lived = torch.isin(before, torch.tensor(living))
    assert 0 < int(lived.sum()) < lived.numel()
    assert torch.equal(after[lived], before[lived])


def test_a_kept_random_permutation_keeps_the_living_tiles_patches():
    def draw(**living):
        generator = torch.Generator().manual_seed(3)
        return draw_assignment("random_fixed", 2, 7, 5, 6, generator=generator, **living)

    lived = torch.isin(draw(), torch.tensor([1, 4]))
    assert torch.equal(draw(living=[1, 4])[lived], draw()[lived])


def test_a_dead_tiles_patches_are_dealt_out_in_turn():
    # alternate: 0 1 2 | 0 1 2 …; tile 1's patches go to 0, 2, 0, 2, …
    after = draw_assignment("alternate", 1, 4, 3, 3, living=[0, 2])
    dead = draw_assignment("alternate", 1, 4, 3, 3) == 1
    assert after[dead].tolist() == [0, 2, 0, 2]


@pytest.mark.parametrize("tiling", [*BALANCED, "rows", "shifted"])
def test_without_rerouting_only_the_dead_tiles_patches_change(tiling, third_party):
    def draw(**living):
        generator = torch.Generator().manual_seed(3)
        return draw_assignment(tiling, 4, 6, 7, 5, generator=generator, **living)

    kept = torch.isin(draw(), torch.tensor([0, 3]))
    expected = draw().where(kept, torch.tensor(-1))
    assert torch.equal(draw(living=[3, 0], reroute=False), expected)
    assert draw(living=[], reroute=False).unique().tolist() == [-1]


@pytest.mark.parametrize("tiling", [*BALANCED, "none"])
def test_all_tiles_named_as_living_change_nothing(tiling):
    n_tiles = 1 if tiling == "none" else 5
    draws = []
    for living in (None, range(n_tiles)):
        generator = torch.Generator().manual_seed(3)
        arguments = {"living": living, "generator": generator}
        draws.append(draw_assignment(tiling, 4, 6, 7, n_tiles, **arguments))
        draws.append(torch.rand((), generator=generator))  # as much of the stream was used
    assert torch.equal(draws[0], draws[2])
    assert torch.equal(draws[1], draws[3])


def test_rerouted_random_draws_are_uniform_over_the_living_tiles():
    living, n = [1, 2, 6], 6000
    generator = torch.Generator().manual_seed(0)
    drawn = draw_assignment("random", n, 2, 5, 8, living=living, generator=generator)
    shares = torch.stack([(drawn == tile).double().mean(0) for tile in living])
    # Each position has each living tile with probability 1/3; standard error 0.006.
    assert torch.allclose(shares, torch.tensor(1 / 3, dtype=torch.double), atol=0.03)
    # Draws without replacement: two positions share a tile with probability 4/15 (loads 4, 3, 3).
    same = (drawn[:, :1] == drawn[:, 1:]).double().mean(0)
    assert torch.allclose(same, torch.tensor(12 / 45, dtype=torch.double), atol=0.03)


@pytest.mark.parametrize(
    ("living", "reroute", "error", "message"),
    [
        ([], True, ValueError, "living: got no tile"),
        ([0, 4], True, ValueError, r"living: got 4, allowed: 0 to 3"),
        ([0, -1], False, ValueError, r"living: got -1, allowed: 0 to 3"),
        ([1, 1], True, ValueError, r"living: got \(1, 1\), expected each tile once"),
        ([0.5], True, TypeError, "living: got 0.5"),
        ([0], 1, TypeError, "reroute: got 1"),
    ],
)
def test_wrong_living_tiles_are_refused(living, reroute, error, message):
    with pytest.raises(error, match=message):
        draw_assignment("random", 1, 4, 4, 4, living=living, reroute=reroute)
