"""Sliders for a notebook: a figure, or a table, that is made anew when one is moved.

Not ipywidgets' ``interact``: it shows results through an ``Output`` widget, on which programs that
execute notebooks can wait for ever (https://github.com/jupyter/nbclient/issues/312). Here they are
the text of an ``HTML`` widget.
"""

import base64
import html
import inspect
import io
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rapa_lib._checks import check_real

CLASS = "rapa-explore"  # of the box, for a style sheet or a test


def explore(make: Callable[..., Any], **ranges: tuple[float, ...]) -> Any:
    """Sliders for arguments of a function, and below them what it returns.

    Args:
        make: returns a figure or a table; its defaults are where the sliders stand first.
        ranges: by argument, least and most and, if it is not 1, the step; whole numbers all, or
            real ones.

    Returns:
        The widget: what a cell ends with is shown.

    Raises:
        ValueError: for an argument that ``make`` does not have, or has without a default, or a
            range that has another length or does not rise.
    """
    import ipywidgets  # an optional package

    defaults = {name: one.default for name, one in inspect.signature(make).parameters.items()}
    sliders = {}
    for name, given in ranges.items():
        if defaults.get(name, inspect.Parameter.empty) is inspect.Parameter.empty:
            known = [n for n, value in defaults.items() if value is not inspect.Parameter.empty]
            raise ValueError(f"ranges: got {name!r}, allowed: {', '.join(known)}")
        low, high, step = _range(name, given)
        whole = all(isinstance(number, int) for number in given)
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        sliders[name] = kind(
            value=min(max(defaults[name], low), high), min=low, max=high, step=step,
            description=name, continuous_update=False, style={"description_width": "initial"},
        )  # fmt: skip
    shown = ipywidgets.HTML()

    def redraw(_: Any = None) -> None:
        shown.value = _markup(make, {name: slider.value for name, slider in sliders.items()})

    redraw()
    for slider in sliders.values():
        slider.observe(redraw, names="value")
    box = ipywidgets.VBox([*sliders.values(), shown])
    box.add_class(CLASS)
    return box


def _range(name: str, given: tuple[float, ...]) -> tuple[float, float, float]:
    numbers = [check_real(name, number) for number in given]
    if not 2 <= len(numbers) <= 3 or numbers[0] >= numbers[1]:
        raise ValueError(f"{name}: got {given}, allowed: least, most and a step")
    return given[0], given[1], given[2] if len(given) == 3 else 1


def _markup(make: Callable[..., Any], values: dict[str, Any]) -> str:
    """What a function returns, or its error, which nobody else would show, as HTML."""
    try:
        made = make(**values)
    except Exception as error:
        return f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"
    if isinstance(made, pd.DataFrame):
        return made.to_html(border=0)
    if not isinstance(made, Figure):
        return f"<pre>{html.escape(str(made))}</pre>"
    picture = io.BytesIO()
    made.savefig(picture, format="png", bbox_inches="tight", dpi=100)
    said = html.escape(", ".join(f"{name} = {value:g}" for name, value in values.items()))
    data = base64.b64encode(picture.getvalue()).decode()
    return f'<img alt="{said}" src="data:image/png;base64,{data}">'
