"""The book: README, docs, the teaching notebooks executed, a study's pages, the library's API.

``make book`` runs Sphinx over the whole repository with this configuration. Links between pages are
those of the repository, and a broken one is an error.
"""

import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

project = "RAPA ConvNets"
copyright = "the rapa-convnets authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md",
    "paper/paper.md", "notebooks/*.ipynb", "results/standard/*.md", "results/mnist5k/*.md",
]  # fmt: skip
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# GitHub's own pages begin sections at any level, and a study's tables have no title of ours.
suppress_warnings = ["myst.header"]

# Notebooks that teach are executed, and again only when they change. Those of experiments train for
# minutes: their committed results stand beside them.
nb_execution_mode = "cache"
nb_execution_cache_path = "build/notebooks"
nb_execution_excludepatterns = [
    "notebooks/accuracy.ipynb", "notebooks/adversarial_robustness.ipynb",
    "notebooks/analog_training.ipynb", "notebooks/fault_tolerance.ipynb",
    "notebooks/filter_similarity.ipynb",
]  # fmt: skip
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_ipywidgets_js = {}  # sliders need a kernel: without one their text stands there, and no network

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True

html_theme = "furo"
html_title = "RAPA ConvNets"
html_copy_source = False
html_theme_options = {"source_repository": ""}

# Pages that are whole as they are: they lie in the book where they lie in the repository.
WHOLE = ("docs/assignments.html", "results/standard/report.html")


def _open_instead_of_download(app: Sphinx, tree: nodes.document, page: str) -> None:
    """A link to a whole page opens it, where Sphinx would offer a download."""
    up = "../" * page.count("/")
    for link in list(tree.findall(nodes.reference)) + list(tree.findall(_is_download)):
        target = (link.get("reftarget") or link.get("refuri") or "").removeprefix("/")
        for whole in WHOLE:
            if target.endswith(whole.rpartition("/")[2]):
                opened = nodes.reference("", "", *link.children, refuri=up + whole)
                link.replace_self(opened)


def _is_download(node: nodes.Node) -> bool:
    return type(node).__name__ == "download_reference"


def _copy_whole(app: Sphinx, error: Exception | None) -> None:
    for name in WHOLE if error is None else ():
        target = Path(app.outdir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(app.srcdir) / name, target)


def setup(app: Sphinx) -> None:
    app.connect("doctree-resolved", _open_instead_of_download)
    app.connect("build-finished", _copy_whole)
