"""Export an executed report notebook as one self-contained page, for a browser without network."""

import argparse
from pathlib import Path

import jinja2
import nbformat
from nbconvert import HTMLExporter

from rapa_lib._files import whole_file

TEMPLATE = Path(__file__).with_name("report.html.j2")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("executed", type=Path)
    arguments.add_argument("page", type=Path)
    options = arguments.parse_args()
    notebook = nbformat.read(options.executed, as_version=4)
    # Empty on the page; papermill draws the identifier of the cell that it adds.
    parameters = {"parameters", "injected-parameters"}
    notebook.cells = [
        cell for cell in notebook.cells if not parameters & set(cell.metadata.get("tags", []))
    ]
    exporter = HTMLExporter(
        template_name="basic",  # the cells alone: no scripts, no fonts from elsewhere
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    title = next(
        line.removeprefix("# ")
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("# ")
    )
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, body=body
    )
    with whole_file(options.page) as part:
        part.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
