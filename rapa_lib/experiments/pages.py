"""The one place where text becomes HTML: of the Markdown of a page, nothing acts in a browser.

Names of data sets, classes and folders, and what errors said, come from outside. Raw HTML is shown
as text; a link leads to a place on the page or to a page beside it; an image is one of the figures
that the catalogue lists, as part of the page.
"""

import base64
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

import mistune

from rapa_lib.experiments.catalogue import CATALOGUE

_INSIDE = re.compile(r"#[\w-]+|[\w-]+\.(?:md|csv)")


def page_html(markdown: str, folder: str | Path | None = None) -> str:
    """Make HTML of Markdown.

    Args:
        markdown: of a page.
        folder: a study's, where its figures are; None: it has none.
    """
    renderer = _Inert(figures_of(folder) if folder is not None else {})
    made = mistune.create_markdown(renderer=renderer, plugins=["table"])(markdown)
    assert isinstance(made, str)
    return made


def figures_of(folder: str | Path) -> dict[str, Path]:
    """The PNG figures that the catalogue lists and a study's folder has, by file name."""
    names = [name for entry in CATALOGUE.values() for name in entry.files if name.endswith(".png")]
    return {name: Path(folder) / name for name in names if (Path(folder) / name).is_file()}


class _Inert(mistune.HTMLRenderer):
    """Markdown that cannot act: see the module."""

    def __init__(self, figures: Mapping[str, Path]):
        super().__init__(escape=True)
        self._figures = figures

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if _INSIDE.fullmatch(url):
            return f'<a href="{escape(url)}">{text}</a>'
        return f"{text} ({escape(url)})"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        if url not in self._figures:
            return f"[{escape(text)}]"
        content = base64.b64encode(self._figures[url].read_bytes()).decode()
        name = escape(Path(url).stem)
        return f'<img id="{name}" alt="{escape(text)}" src="data:image/png;base64,{content}">'
