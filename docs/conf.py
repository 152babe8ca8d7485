"""The book: README, docs, the teaching notebooks executed, a study's pages, the library's API.

``make book`` runs Sphinx over the whole repository with this configuration. Links between pages are
those of the repository, and a broken one is an error.
"""

import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

project = "RAPA ConvNets"
copyright = "the rapa-convnets authors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md",
    "config/README.md", "paper/paper.md", "notebooks/*.ipynb", "results/digits/*.md",
    "results/standard/*.md", "results/mnist5k/*.md",
    "results/synchronisation_digits/synchronisation.md", "results/synchronisation_digits/claims.md",
    "results/analog_digits/analog_training.md", "results/analog_digits/claims.md",
    "results/analog_imperfections/analog_training.md",
    "results/attacked_digits/adversarial_robustness.md", "results/attacked_digits/claims.md",
    "results/amount_digits/claims.md", "results/small/*.md", "results/full/*.md",
]  # fmt: skip
myst_heading_anchors = 3
# GitHub's own pages begin sections at any level, and a study's tables have no title of ours.
suppress_warnings = ["myst.header"]

# Notebooks that teach are executed, and again only when they change. Those of experiments train for
# minutes: their committed results stand beside them.
nb_execution_mode = "cache"
nb_execution_cache_path = "build/notebooks"
nb_execution_excludepatterns = [
    "notebooks/accuracy.ipynb", "notebooks/adversarial_robustness.ipynb",
    "notebooks/analog_training.ipynb", "notebooks/fault_tolerance.ipynb",
    "notebooks/filter_similarity.ipynb", "notebooks/synchronisation.ipynb",
]  # fmt: skip
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_ipywidgets_js = {}  # sliders need a kernel: without one their text stands there, and no network

autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
autodoc_typehints = "signature"
napoleon_custom_sections = ["Shape"]

html_theme = "furo"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_title = "RAPA ConvNets"
html_copy_source = False
html_theme_options = {"source_repository": ""}

# Pages that are whole as they are: they lie in the book where they lie in the repository.
WHOLE = (
    "docs/assignments.html",
    *(f"results/{name}/report.html" for name in
      ("digits", "amount_digits", "attacked_digits", "small", "full",
       "synchronisation_digits", "analog_digits", "analog_imperfections", "standard")),
)  # fmt: skip


def _open_instead_of_download(app: Sphinx, tree: nodes.document, page: str) -> None:
    """A link to a whole page opens it, where Sphinx would offer a download."""
    up = "../" * page.count("/")
    for link in list(tree.findall(nodes.reference)):  # downloads are references too
        target = (link.get("reftarget") or link.get("refuri") or "").removeprefix("/")
        for whole in WHOLE:
            # A page in docs is named from docs.
            if target.endswith(whole.removeprefix("docs/")):
                opened = nodes.reference("", "", *link.children, refuri=up + whole)
                link.replace_self(opened)


def _one_line(app: Sphinx, what: str, name: str, of: object, options: object, lines: list) -> None:
    """Names of arguments that go on in a second line, as napoleon reads them: in one."""
    for i in range(len(lines) - 1, 0, -1):
        if re.fullmatch(r"    [\w, ]+,", lines[i - 1]):
            lines[i - 1 : i + 1] = [f"{lines[i - 1]} {lines[i].strip()}"]


def _plain(app: Sphinx, what: str, name: str, of: object, options: object, lines: list) -> None:
    """Docstrings without what would need a renderer from the network, or means another thing."""
    for i, line in enumerate(lines):
        if line.startswith(".. math:: "):
            lines[i] = f"``{line.removeprefix('.. math:: ')}``"
        else:
            lines[i] = line.replace(":math:", "").replace("|", r"\|")


def _finish(app: Sphinx, error: Exception | None) -> None:
    for name in WHOLE if error is None else ():
        target = Path(app.outdir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(app.srcdir) / name, target)
    forward = '<meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">'
    (Path(app.outdir) / "index.html").write_text(f"{forward}\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _one_line, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _plain, priority=600)
    app.connect("doctree-resolved", _open_instead_of_download)
    app.connect("build-finished", _finish)
