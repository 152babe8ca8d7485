"""The book: built without a warning, links that lead somewhere, pages that fit a phone."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SHOWN = ["docs/index", "docs/api", "docs/comparison", "notebooks/one_tile", "paper/paper"]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The pages, notebooks as they are committed: make book executes those that teach."""
    pytest.importorskip("sphinx", reason="the extra book is not installed")
    out = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "--conf-dir", "docs"]
    command += ["-D", "nb_execution_mode=off", "--doctree-dir", str(out / "doctrees")]
    done = subprocess.run(
        [*command, ".", str(out / "pages")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out / "pages"


class Links(HTMLParser):
    """The targets and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        self.targets += [attrs[name] for name in ("href", "src") if attrs.get(name)]


def test_every_link_leads_somewhere(book):
    pages = {path.resolve(): Links(path) for path in book.rglob("*.html")}
    assert len(pages) > 40
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert to.exists(), f"{path}: {target}"
            if parts.fragment and to in pages:
                assert unquote(parts.fragment) in pages[to].anchors, f"{path}: {target}"


@pytest.mark.parametrize("width", [400, 1280])
def test_pages_open_from_disk_and_fit(book, chromium, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for name in [*SHOWN, "docs/assignments", "results/digits/report", "results/standard/report"]:
        page.goto((book / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.goto((book / "docs/index.html").as_uri())
    page.click("text=Which tile computes which patch?")
    assert page.inner_text("#speed").startswith("1024 patches")
    page.close()
