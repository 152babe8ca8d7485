"""The rules by which claims are judged, read from YAML and checked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rapa_lib._checks import (
    Checked,
    check_int,
    check_real,
    checked,
    choice,
    flag,
    real,
    several,
    text,
)

EXPECTS = ("less", "greater", "no_more", "alike", "at_least")
"""What a claim says of its endpoint: the difference is below 0, above 0, below the smallest effect
of interest (it costs little), within bounds, or (an exact number, without seeds) at least a bound.
"""

POOLS = ("mean", "slope", "reach")
"""How rows of one run that differ in ``over`` become one number. ``mean``; ``slope``: Σ value ·
``against`` / Σ ``against``², the factor between two columns; ``reach``: the largest number up to
which the value, true or false, is always true.
"""


@dataclass(frozen=True)
class Arm:
    """Rows of a table and the column that is read from them.

    Args:
        value: the column.
        where: by column, the value or list of values that rows must have; ``"first"`` and
            ``"last"`` are the least and the greatest number of the column in each run. Empty text
            is a value that is not given; a column that a table lacks is not given in every row.
        less: rows and column of the same networks, subtracted seed by seed before arms are
            compared.
        name: of the arm, as verdicts name it.
    """

    value: str
    where: Mapping[str, Any] = field(default_factory=dict)
    less: "Arm | None" = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Endpoint(Checked):
    """One number that a claim predicts.

    Args:
        endpoint: in words.
        table: name of the collected table, without ``.csv``.
        of: what the claim is about.
        minus: the rivals that it is compared with; without any the value stands alone. With several
            the claim must hold against each.
        beyond: two arms: the same difference in another network, which is subtracted too.
        expects: one of :data:`EXPECTS`.
        sesoi: smallest effect of interest, in the endpoint's unit; for ``no_more`` the most that
            counts as little.
        within: for ``alike``, the bounds.
        bound: for ``at_least``.
        unit: of the number, in words.
        times: factor on the values, 100 for shares in percent.
        pool, over, against: how rows of one run that differ in the columns ``over`` become one
            number, see :data:`POOLS`.
        paired: why runs of one seed belong together; empty: they do not, as a rule.
        images: column with a JSON list per row, one value per image, the same images for all arms;
            where the table has it, intervals are over seeds and images.
        gates: names of the gates that must be passed for it to be testable.
        figure: name of the figure that shows it.
    """

    endpoint: str = text()
    table: str = text()
    of: Arm
    minus: tuple[Arm, ...] = ()
    beyond: tuple[Arm, ...] = ()
    expects: str = choice(MISSING, EXPECTS)
    sesoi: float | None = real(None, low=0, open_low=True, optional=True)
    within: tuple[float, ...] = several((), check_real, of="numbers", empty=True)
    bound: float | None = real(None, optional=True)
    unit: str = text("")
    times: float = real(1.0)
    pool: str = choice("mean", POOLS)
    over: tuple[str, ...] = several((), lambda name, one: str(one), of="columns", empty=True)
    against: str = text("")
    paired: str = text("")
    images: str = text("")
    gates: tuple[str, ...] = several((), lambda name, one: str(one), of="gates", empty=True)
    figure: str = text("")

    def _check(self) -> None:
        needed = {"alike": "within", "at_least": "bound"}.get(self.expects, "sesoi")
        for name in ("sesoi", "within", "bound"):
            value = getattr(self, name)
            if (name == needed) == (value is None or value == ()):
                what = "missing" if name == needed else f"got {value}"
                raise ValueError(f"{name}: {what}; {self.expects} needs {needed} alone")
        if self.within and not (len(self.within) == 2 and self.within[0] < self.within[1]):
            raise ValueError(f"within: got {self.within}, expected a lower and an upper bound")
        if len(self.beyond) not in (0, 2) or (self.beyond and len(self.minus) != 1):
            raise ValueError("beyond: expected of and minus, beside one minus")
        if (self.pool == "slope") != bool(self.against):
            raise ValueError(f"against: got {self.against!r}, needed for pool: slope alone")

    @property
    def rule(self) -> str:
        """In words, what the claim says of the number."""
        if self.expects == "alike":
            return f"between {self.within[0]:g} and {self.within[1]:g}"
        if self.expects == "at_least":
            return f"at least {self.bound:g}"
        if self.expects == "no_more":
            return f"below {self.sesoi:g}"
        return "below 0" if self.expects == "less" else "above 0"


@dataclass(frozen=True, kw_only=True)
class Gate(Checked):
    """What a setting must show before an endpoint can be tested in it, judged by means over seeds.

    Args:
        says: what must be so, in words.
        table: name of the collected table, without ``.csv``.
        of: rows and column; with ``compared`` its ``where`` is the tiling of a compared arm, and
            the number is the greatest distance between the first arm and the others.
        compared: whether the compared arms are looked at, rather than ``of`` as it stands.
        at_least, below: the bound; one of them.
        unit: of the number, in words.
    """

    says: str = text()
    table: str = text()
    of: Arm
    compared: bool = False
    at_least: float | None = real(None, optional=True)
    below: float | None = real(None, optional=True)
    unit: str = text("")

    def _check(self) -> None:
        if (self.at_least is None) == (self.below is None):
            raise ValueError(
                f"at_least, below: got {self.at_least} and {self.below}, expected one of them"
            )

    def passed(self, number: float) -> bool:
        """Whether the number lets an endpoint be tested."""
        if self.at_least is not None:
            return number >= self.at_least
        return self.below is not None and number < self.below


@dataclass(frozen=True)
class Claim:
    """A claim, by its name and in words: what decides it, and what is shown beside."""

    id: str
    claim: str
    primary: Endpoint
    secondary: tuple[Endpoint, ...] = ()


@dataclass(frozen=True)
class Rules(Checked):
    """All that a study is judged by.

    Args:
        claims: in the order of the report.
        gates: by name.
        level: of the families of tests.
        min_seeds: fewer seeds in any arm decide nothing.
        pair_subsets: pair arms seed by seed where each seed drew its own training images.
        prefer: by column, values in order of preference: which of a study's settings is the
            primary one.
    """

    claims: tuple[Claim, ...]
    gates: Mapping[str, Gate]
    level: float = real(0.05, low=0, high=0.5, open_low=True)
    min_seeds: int = checked(3, lambda name, value: check_int(name, value, low=2))
    pair_subsets: bool = flag(False)
    prefer: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def _check(self) -> None:
        for claim in self.claims:
            for endpoint in (claim.primary, *claim.secondary):
                if unknown := sorted(set(endpoint.gates) - set(self.gates)):
                    known = ", ".join(self.gates)
                    raise ValueError(
                        f"claims: {claim.id}: gates: got {', '.join(unknown)}, allowed: {known}"
                    )


def read_claims(content: Mapping[str, Any]) -> Rules:
    """The rules of a YAML file's content.

    An arm's ``minus`` and ``beyond`` are like its ``of`` but for what they say, and so is ``less``.

    Raises:
        ValueError: for a rule that is not allowed, with its claim's or gate's name.
    """
    gates = {}
    for name, entry in content.get("gates", {}).items():
        with _naming(f"gates: {name}"):
            gates[name] = Gate(**dict(entry) | {"of": _arm(entry["of"])})
    claims = []
    for entry in content["claims"]:
        with _naming(f"claims: {entry.get('id')}"):
            if unknown := sorted(set(entry) - {one.name for one in fields(Claim)}):
                raise ValueError(f"got {', '.join(unknown)}, allowed: primary, secondary")
            claims.append(
                Claim(
                    entry["id"],
                    entry["claim"],
                    _endpoint(entry["primary"]),
                    tuple(_endpoint(one) for one in entry.get("secondary", ())),
                )
            )
    names = ("level", "min_seeds", "pair_subsets", "prefer")
    own = {name: content[name] for name in names if name in content}
    return Rules(tuple(claims), gates, **own)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors of a rule become ValueErrors that name it."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{name}: {error.args[0]}: missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _endpoint(entry: Mapping[str, Any]) -> Endpoint:
    of = _arm(entry["of"])
    minus = entry.get("minus", [])
    rivals = tuple(_arm(one, of) for one in ([minus] if isinstance(minus, Mapping) else minus))
    beyond: tuple[Arm, ...] = ()
    if "beyond" in entry:
        first, second = entry["beyond"]["of"], entry["beyond"]["minus"]
        beyond = (_arm(first, of), _arm(second, _arm(first, of)))
    return Endpoint(**dict(entry) | {"of": of, "minus": rivals, "beyond": beyond})


def _arm(entry: Mapping[str, Any], like: Arm | None = None) -> Arm:
    if unknown := sorted(set(entry) - {"value", "where", "less", "name"}):
        raise ValueError(f"arm: got {', '.join(unknown)}, allowed: value, where, less, name")
    value = entry["value"] if like is None else entry.get("value", like.value)
    where = dict(like.where if like else {}) | dict(entry.get("where", {}))
    base = Arm(value, where)
    less = like.less if like else None
    if "less" in entry:
        less = entry["less"] and _arm(entry["less"], base)
    elif less is not None:  # of other rows, but otherwise as in the arm that it is like
        changed = {k: v for k, v in less.where.items() if like and like.where.get(k) != v}
        less = Arm(less.value, where | changed)
    return Arm(value, where, less or None, entry.get("name", "") or str(where.get("tiling", value)))
