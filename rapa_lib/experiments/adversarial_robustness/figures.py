"""The robustness experiment's figures and sentences: what attacks leave of the accuracy."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rapa_lib.experiments.adversarial_robustness.tables import (
    at_focus,
    clean_accuracy,
    clean_correct,
    correct_by_seed,
    interval_of,
    over_images,
    paired_difference,
    row_dicts,
    strongest,
    with_labels,
)
from rapa_lib.experiments.plots import STYLE, UNKNOWN, WIDTH, joined, label_order, set_title
from rapa_lib.robustness import LEVELS, NORMS

LEVEL_TITLES = {
    "published": "as published: one gradient",
    "adaptive": "adaptive",
    "gradient_free": "gradient-free",
}
REFERENCE = "none"  # the tiling that others are compared with


CONFIGURATION = [
    "dataset", "tiling", "n_tiles", "tile_init", "pooling", "activation", "normalisation",
    "tile_lr_power", "epochs",
]  # fmt: skip


def robustness_figure(table: pd.DataFrame) -> Figure:
    """Robust accuracy against the budget ε: a column a level, a row a norm, a line a network.

    At each ε the attack counts that leaves least; at 0 there is the clean accuracy. Intervals are
    95 % over images and, where there are several, seeds.

    Args:
        table: rows of :func:`rapa_lib.adversarial_robustness.robustness_table`.
    """
    found = strongest(table)
    labels = label_order(found)
    palette = sns.color_palette("colorblind", len(labels))
    levels = [level for level in LEVELS if level in set(found["level"])]
    norms = [norm for norm in NORMS if norm in set(found["norm"])]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 2.4 * len(norms)))
        panels = figure.subplots(len(norms), len(levels), squeeze=False, sharey=True, sharex="row")
        for norm, row in zip(norms, panels, strict=True):
            # Budgets grow by factors: side by side they can all be seen.
            budgets = sorted({0.0, *found.loc[found["norm"] == norm, "epsilon"]})
            for level, axes in zip(levels, row, strict=True):
                for i, (label, colour) in enumerate(zip(labels, palette, strict=True)):
                    line = found[
                        (found["norm"] == norm)
                        & (found["level"] == level)
                        & (found["label"] == label)
                    ].sort_values("epsilon")
                    if len(line) == 0:
                        continue
                    start = clean_accuracy(table, label)
                    points = [start, *line[["mean", "low", "high"]].to_numpy()]
                    places = [budgets.index(e) for e in (0.0, *line["epsilon"])]
                    shift = 0.06 * (i - (len(labels) - 1) / 2)
                    _points(axes, np.add(places, shift), points, label, colour)
                axes.set_xticks(range(len(budgets)), [_budget(norm, e) for e in budgets])
                axes.set_xlabel(f"ε ({NORMS[norm]})")
                if norm == norms[0]:
                    axes.set_title(LEVEL_TITLES[level])
            row[0].set_ylabel("robust accuracy (%)")
        panels[0, 0].set_ylim(bottom=0)
        handles, names = panels[0, 0].get_legend_handles_labels()
        names = [name.replace("\n", ", ") for name in names]
        columns = max(1, 80 // (8 + max(map(len, names))))  # characters of a name and its line
        figure.legend(handles, names, loc="outside lower center", ncols=columns)
        set_title(figure, f"{_of_what(table)}; {_interval(table)}")
    return figure


def draws_figure(table: pd.DataFrame) -> Figure:
    """Robust accuracy against the number of draws of a gradient, at one budget.

    Networks without lots have one gradient, whatever the number: dashed.

    Args:
        table: rows of :func:`rapa_lib.adversarial_robustness.robustness_table`.
    """
    table = with_labels(table)
    rows = at_focus(table)
    labels = label_order(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.subplots()
        for label, colour in zip(labels, sns.color_palette("colorblind", len(labels)), strict=True):
            line = rows[rows["label"] == label]
            name = label.replace("\n", ", ")
            if set(line["draws"]) == {1}:
                mean, low, high = over_images(line)
                axes.axhline(100 * mean, color=colour, linestyle="--", label=name)
                axes.axhspan(100 * low, 100 * high, color=colour, alpha=0.08, linewidth=0)
                continue
            curve = [(m, over_images(part)) for m, part in line.groupby("draws")]
            draws, points = zip(*curve, strict=True)
            _points(axes, draws, points, name, colour)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
        axes.set(xlabel="draws of each gradient", ylabel="robust accuracy (%)")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        if len(rows):
            epsilon = _budget(rows["norm"].iloc[0], rows["epsilon"].iloc[0])
            attack = f"PGD with {rows['steps'].iloc[0]} steps, ε {epsilon} (L∞)"
            set_title(figure, f"{_of_what(table)}; {attack}; {_interval(table)}")
    return figure


def examples_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Perturbed images with each network's answer: a row a network, clean images above.

    Answers are those of most draws; the share is of fresh draws that are still right.

    Args:
        records: of :meth:`rapa_lib.adversarial_robustness.RobustnessRun.measure`, of the same
            images; of several of one configuration the first is shown.
    """
    table = with_labels(pd.DataFrame(records))
    shown = [
        (label, records[table.index[table["label"] == label][0]]["examples"])
        for label in label_order(table)
    ]
    shown = [(label, examples) for label, examples in shown if examples]
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        if not shown:
            figure = Figure(figsize=(WIDTH, 0.6))
            set_title(figure, "No examples: projected gradient descent was not run.")
            return figure
        first = shown[0][1]
        n_images = len(first["labels"])
        figure = Figure(figsize=(WIDTH, 1.35 * (len(shown) + 1) + 0.4))
        panels = figure.subplots(len(shown) + 1, n_images, squeeze=False)
        for axes, image, name in zip(panels[0], first["clean"], first["labels"], strict=True):
            _picture(axes, image, name, "black")
        panels[0, 0].set_ylabel("clean")
        for (label, examples), row in zip(shown, panels[1:], strict=True):
            told = ("perturbed", "perturbed_answers", "labels", "withstood")
            for axes, image, answer, right, share in zip(
                row, *(examples[key] for key in told), strict=True
            ):
                colour = "tab:green" if answer == right else "tab:red"
                _picture(axes, image, f"{answer} ({100 * share:.0f} %)", colour)
            row[0].set_ylabel(label)
        focus = _budget("linf", records[0]["measurement"]["focus"])
        set_title(
            figure,
            f"{_of_what(table)}: projected gradient descent, ε {focus} (L∞); answers of most "
            "draws, in brackets the share of fresh draws that are right",
        )
    return figure


def robustness_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration: accuracy in percent, clean and under each level, and norms.

    Args:
        table: rows of :func:`rapa_lib.adversarial_robustness.robustness_table`.
    """
    found, labelled = strongest(table), with_labels(table)
    rows = []
    for label in label_order(found):
        own = labelled[labelled["label"] == label]
        row = {"network": label.replace("\n", ", "), "seeds": own["seed"].nunique()}
        row["clean"] = _percent(clean_accuracy(table, label))
        mine = found[found["label"] == label].sort_values(
            ["norm", "epsilon"], ascending=[False, True]
        )
        for level in LEVELS:
            for part in row_dicts(mine[mine["level"] == level]):
                name = f"{level.replace('_', '-')}, {NORMS[part['norm']]} "
                name += _budget(part["norm"], part["epsilon"])
                row[name] = f"{_percent(interval_of(part))} ({part['attack']})"
        for attack, part in own[own["epsilon"].isna()].groupby("attack", sort=False):
            norms = part["median_norm"].astype(float)
            scale = 255 if part["norm"].iloc[0] == "linf" else 1
            unit = "/255" if scale == 255 else ""
            told = ", ".join("∞" if np.isnan(n) else f"{scale * n:.2f}{unit}" for n in norms)
            row[f"median {NORMS[part['norm'].iloc[0]]} norm, {attack}"] = told
        rows.append(row)
    return pd.DataFrame(rows).fillna(UNKNOWN)


def strongest_by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Robust accuracy under the attack that leaves least, as :func:`strongest` finds it, by seed.

    Returns:
        A row a configuration, level, norm, budget and seed: ``dataset``, ``tiling``, ``n_tiles``,
        ``tile_init``, ``pooling``, ``activation``, ``normalisation``, ``tile_lr_power``,
        ``epochs``, ``level``, ``norm``, ``epsilon``, ``attack``, ``seed``, ``n_images``,
        ``robust_accuracy`` (a share).
    """
    table = with_labels(table)
    settings = table.drop_duplicates("label").set_index("label")[CONFIGURATION]
    rows = [
        settings.loc[found["label"]].to_dict()
        | {name: found[name] for name in ("level", "norm", "epsilon", "attack")}
        | {"seed": seed, "n_images": len(correct), "robust_accuracy": float(correct.mean())}
        for found in row_dicts(strongest(table))
        for seed, correct in zip(found["seeds"], found["correct"], strict=True)
    ]
    return pd.DataFrame(rows)


def robustness_answer(table: pd.DataFrame, records: Sequence[dict[str, Any]]) -> str:
    """What the numbers say, as Markdown: what is left at the focus, against ``none``; alarms.

    Args:
        table: rows of :func:`rapa_lib.adversarial_robustness.robustness_table`.
        records: what it was made of.
    """
    found = strongest(table)
    focus = records[0]["measurement"]["focus"]
    here = found[(found["norm"] == "linf") & np.isclose(found["epsilon"], focus)]
    place = f"ε = {_budget('linf', focus)} (L∞)"
    lines = [f"**Robust accuracy at {place}, by the attack of each level that leaves least:**", ""]
    for label in label_order(here):
        mine = here[here["label"] == label]
        said = ", ".join(
            f"{part['level'].replace('_', '-')} {_percent(interval_of(part))} % ({part['attack']})"
            for part in row_dicts(mine)
        )
        clean = _percent(clean_accuracy(table, label))
        lines.append(f"- `{label.replace(chr(10), ', ')}`: clean {clean} %; {said}")
    lines += ["", *_differences(here, table), *_against_noise(found), *_warnings(records)]
    return "\n".join(lines)


def _differences(here: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """How much more each network keeps than the ordinary one, seed by seed and image by image."""
    reference = here[here["tiling"] == REFERENCE]
    if reference["label"].nunique() != 1 or here["label"].nunique() < 2:
        return []
    lines = [
        "Against `none`, on the same images and seeds (points, 95 % over images and seeds):",
        "",
    ]
    verdict = {}
    for label in label_order(here):
        if label in set(reference["label"]):
            continue
        said = []
        clean = paired_difference(
            clean_correct(table, label), clean_correct(table, reference["label"].iloc[0])
        )
        if clean is not None:
            said.append(f"clean {_points_text(clean)}")
        for level in LEVELS:
            gap = paired_difference(
                *(
                    correct_by_seed(rows[rows["level"] == level])
                    for rows in (here[here["label"] == label], reference)
                )
            )
            if gap is not None:
                said.append(f"{level.replace('_', '-')} {_points_text(gap)}")
                verdict[label, level] = gap
        lines.append(f"- `{label.replace(chr(10), ', ')}`: {'; '.join(said)}")
    lines.append("")
    for label in (name for name in label_order(here) if name.split("\n")[0] == "random"):
        published, adaptive = (verdict.get((label, level)) for level in LEVELS[:2])
        name = label.replace("\n", ", ")
        if published is not None:
            lines.append(f"Published-style robustness of `{name}` {_whether(published)}.")
        if adaptive is not None:
            lines.append(f"Under adaptive attacks it {_whether(adaptive)}.")
            if published is not None and published[1] > 0:
                share = 100 * adaptive[0] / published[0]
                lines.append(f"Of the lead under published attacks, {share:.0f} % is left.")
        lines.append("")
    return lines


def _against_noise(found: pd.DataFrame) -> list[str]:
    """How much more `random` keeps than plain noise of the same size, under adaptive attacks."""
    adaptive = found[(found["level"] == "adaptive") & (found["norm"] == "linf")]
    told = []
    for epsilon, rows in adaptive.groupby("epsilon"):
        mine, noisy = (rows[rows["tiling"] == tiling] for tiling in ("random", "noisy"))
        if len(mine) > 1 or len(noisy) > 1:
            continue
        gap = paired_difference(correct_by_seed(mine), correct_by_seed(noisy))
        if gap is not None:
            told.append(f"ε = {_budget('linf', epsilon)}: {_points_text(gap)}")
    if not told:
        return []
    return [
        f"Against `noisy`, `random` keeps under adaptive attacks (points): {'; '.join(told)}.",
        "",
    ]


def _whether(gap: tuple[float, float, float]) -> str:
    _, low, high = gap
    if low > 0:
        return f"is there: {_points_text(gap)} points more than `none`"
    if high < 0:
        return f"is not there: {_points_text(gap)} points, less than `none`"
    return f"cannot be told from none: {_points_text(gap)} points against `none`"


def _warnings(records: Sequence[dict[str, Any]]) -> list[str]:
    alarms = [
        f"- **Warning**, `{record['tiling']}`, seed {record['seed']}: not so that "
        f"{alarm['check']} ({alarm['detail']})"
        for record in records
        for alarm in record["alarms"]
        if alarm["holds"] is False
    ]
    told = sum(alarm["holds"] is not None for record in records for alarm in record["alarms"])
    if not alarms:
        return [f"None of {told} checks for gradients that mislead raised an alarm."]
    return [
        f"{len(alarms)} of {told} checks for gradients that mislead raised an alarm:",
        "",
        *alarms,
    ]


def _points(axes, places, points, label, colour) -> None:
    mean, low, high = 100 * np.array(points, dtype=float).T
    axes.errorbar(
        places, mean, yerr=[mean - low, high - mean], label=label, color=colour, marker="o",
        markersize=3, linewidth=1.3, elinewidth=0.8, capsize=1.5,
    )  # fmt: skip


def _picture(axes, image, title, colour) -> None:
    image = np.asarray(image, dtype=np.uint8)
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, color=colour, fontsize="x-small", loc="center")


def _budget(norm: str, epsilon: float) -> str:
    return f"{255 * epsilon:.3g}/255" if norm == "linf" and epsilon else f"{epsilon:g}"


def _percent(interval: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _points_text(interval: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _of_what(table: pd.DataFrame) -> str:
    return joined(table["dataset"])


def _interval(table: pd.DataFrame) -> str:
    many = table["seed"].nunique() > 1
    return f"95 % intervals over images{' and seeds' if many else ''}"
