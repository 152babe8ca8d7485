"""What a page shows of the outside does nothing: no script runs, nothing is loaded."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pandas as pd
import pytest

from rapa_lib.experiments.markdown import markdown_table, plain_text
from rapa_lib.experiments.pages import page_html
from rapa_lib.experiments.plots import joined
from rapa_lib.experiments.protocol import experiment, write_collected

TEMPLATE = Path(__file__).parents[2] / "workflow/scripts/report.html.j2"
SCRIPT = "document.title='pwned'"
NASTY = [
    f"<script>{SCRIPT}</script>",
    f'<img src=x onerror="{SCRIPT}">',
    f"<svg/onload={SCRIPT}>",
    f"[a](javascript:{SCRIPT})",
    f"[a](data:text/html,<script>{SCRIPT}</script>)",
    "[a](http://example.com)",
    "![a](http://example.com/a.png)",
    "![a](../../secret.png)",
    "<http://example.com>",
    "`</code><script>1</script>`",
    "a|b|c",
    "*a* __b__ # c",
    "&lt;b&gt; &amp;",
    "<!-- a",
    f"<a href='javascript:{SCRIPT}'>",
    f'![a](accuracy.png" onerror="{SCRIPT})',
]


class Seen(HTMLParser):
    """Elements and attributes as a browser would read them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def seen(html):
    parser = Seen()
    parser.feed(html)
    parser.close()
    return parser


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    study = tmp_path / "results/study"
    study.mkdir(parents=True)
    (study / "accuracy.png").write_bytes(b"figure")
    return study


INERT = {"p", "em", "strong", "code", "a", "img", "h1", "ul", "li", "table", "thead", "tbody"}
INERT |= {"tr", "th", "td", "br", "blockquote", "hr", "pre", "h2", "h3", "ol"}


@pytest.mark.parametrize("text", NASTY)
def test_what_comes_from_outside_is_text(folder, text):
    table = markdown_table(pd.DataFrame({"dataset": [text], text: ["x"]}))
    for markdown in (text, f"# {text}", f"- {text}", f"**{plain_text(text)}**", table):
        found = seen(page_html(markdown, folder))
        assert found.tags <= INERT
        for name, value in found.attributes:
            assert name in ("href", "id", "alt", "src", "style")
            if name == "href":
                assert value.startswith("#")
            if name == "src":
                assert value == f"data:image/png;base64,{base64.b64encode(b'figure').decode()}"


@pytest.mark.parametrize("text", NASTY)
def test_plain_text_is_shown_letter_by_letter(text):
    assert seen(page_html(plain_text(text))).text.strip() == " ".join(text.split())


@pytest.mark.parametrize("text", NASTY)
def test_a_cell_stays_a_cell(text):
    html = page_html(markdown_table(pd.DataFrame({"a": [text], "b": ["x"]})))
    assert html.count("<td") == 2


def test_figures_links_and_tables_of_ours_are_there(folder):
    text = "[C1](#claim-C1), [table](accuracy.csv)\n\n![error](accuracy.png)\n\n| a |\n|---|\n| 1 |"
    html = page_html(text, folder)
    assert '<a href="#claim-C1">C1</a>' in html
    assert '<a href="accuracy.csv">table</a>' in html
    assert '<img id="accuracy" alt="error" src="data:image/png;base64,' in html
    assert "<td>1</td>" in html


def test_a_dollar_in_a_name_begins_no_formula(archive, tmp_path):
    assert joined(pd.Series(["a$b$", "a$b$"])) == r"a\$b\$"
    records = archive.records("accuracy")
    for record in records:
        for part in (record, record["curve"], record["similarity"]):
            part["dataset"] = r"cost $\frac <b>"
    collected = experiment("accuracy").collect(records)
    write_collected("accuracy", collected, tmp_path, records, description="d")
    assert (tmp_path / "accuracy.svg").stat().st_size > 1000


@pytest.fixture(scope="module")
def page():
    """The report's template around nasty names, once inert and once as they are."""
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    safe = "".join(page_html(text) for text in NASTY)
    return {
        "inert": template.render(title=NASTY[0], body=safe),
        # Where the escaping above fails, the page's policy still lets nothing act.
        "raw": template.render(title="report", body="".join(NASTY)),
    }


@pytest.mark.parametrize("kind", ["inert", "raw"])
def test_no_script_runs_in_a_browser(page, tmp_path, kind):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium is here: whether a script runs was not tried in a browser")

    def title(html):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
             "--virtual-time-budget=2000", "--dump-dom", path.as_uri()],
            capture_output=True, encoding="utf-8", timeout=60, check=True,
        )  # fmt: skip
        return re.search(r"<title>(.*?)</title>", done.stdout)[1]

    assert title(page[kind]) != "pwned"
    open_page = re.sub(r"<meta http-equiv[^>]*>", "", page["raw"])
    if kind == "raw":  # the same page without its policy: the test can fail
        assert title(open_page) == "pwned"


def test_the_report_shows_text_by_this_alone():
    notebook = json.loads((TEMPLATE.parents[2] / "notebooks/report.ipynb").read_text("utf-8"))
    code = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    assert "Markdown(" not in code
    assert set(re.findall(r"HTML\((\w+)", code)) <= {"page_html", "verdicts_html", "f"}
