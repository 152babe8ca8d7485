"""Sliders make a figure or a table anew, and show what goes wrong."""

import base64
import re

import ipywidgets
import nbformat
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

from rapa_lib.experiments.guide.controls import CLASS, explore


def table(n=3, scale=0.5, words="no number"):
    return pd.DataFrame({"scaled": [scale * i for i in range(n)]})


def parts(box):
    *sliders, shown = box.children
    return {slider.description: slider for slider in sliders}, shown


def test_moving_a_slider_makes_the_table_anew():
    box = explore(table, n=(1, 5), scale=(0.0, 1.0, 0.25))
    sliders, shown = parts(box)
    assert CLASS in box._dom_classes
    assert isinstance(sliders["n"], ipywidgets.IntSlider)
    assert isinstance(sliders["scale"], ipywidgets.FloatSlider)
    assert (sliders["n"].value, sliders["scale"].value, sliders["scale"].step) == (3, 0.5, 0.25)
    assert shown.value == table().to_html(border=0)
    sliders["n"].value, sliders["scale"].value = 5, 1.0
    assert shown.value == table(5, 1.0).to_html(border=0)


def test_a_figure_is_a_picture_that_says_its_values():
    def draw(height=2.0):
        figure = Figure(figsize=(1, height))
        figure.subplots().plot([0, 1])
        return figure

    sliders, shown = parts(explore(draw, height=(1.0, 4.0, 1.0)))
    before = shown.value
    sliders["height"].value = 4.0
    alt, data = re.fullmatch(
        r'<img alt="(.*)" src="data:image/png;base64,(.*)">', shown.value
    ).groups()
    assert alt == "height = 4"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert shown.value != before


def test_an_error_is_shown_escaped_and_the_next_value_goes_on():
    def fails(n=1):
        if n == 2:
            raise ValueError("<b>two</b>")
        return f"n is <{n}>"

    sliders, shown = parts(explore(fails, n=(1, 3)))
    assert shown.value == "<pre>n is &lt;1&gt;</pre>"
    sliders["n"].value = 2
    assert shown.value == "<pre>ValueError: &lt;b&gt;two&lt;/b&gt;</pre>"
    sliders["n"].value = 3
    assert shown.value == "<pre>n is &lt;3&gt;</pre>"


def test_a_start_outside_of_its_range_is_at_its_end():
    sliders, _ = parts(explore(table, n=(4, 9)))
    assert sliders["n"].value == 4


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"m": (1, 2)}, "ranges: got 'm', allowed: n, scale, words"),
        ({"n": (1,)}, r"n: got \(1,\), allowed: least, most and a step"),
        ({"n": (2, 2)}, r"n: got \(2, 2\), allowed: least, most and a step"),
    ],
)
def test_what_cannot_be_a_slider_is_refused(ranges, message):
    with pytest.raises(ValueError, match=message):
        explore(table, **ranges)


def test_executing_a_notebook_with_sliders_ends():
    """With an Output widget it does not always, https://github.com/jupyter/nbclient/issues/312."""
    source = (
        "from rapa_lib.experiments.guide.controls import explore\n"
        "explore(lambda n=1: 'n' * n, n=(1, 3))"
    )
    cells = [nbformat.v4.new_code_cell(source) for _ in range(20)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=60, kernel_name="python3")
    client.execute()
    state = client.nb.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    kinds = [widget["model_name"] for widget in state.values()]
    assert kinds.count("HTMLModel") == 20
    assert "OutputModel" not in kinds
