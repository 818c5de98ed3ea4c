"""The pages: `make docs` executes the course and writes build/docs/index.html."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
project = "pyconv"
copyright = "The pyconv authors"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]

extensions = [
    "matplotlib.sphinxext.mathmpl",  # formulas as pictures: MathJax would need a network
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["course"]  # the gallery writes its pages to _course
html_theme = "furo"
html_static_path = ["wide.css"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
autodoc_member_order = "bysource"
default_role = "code"  # docstrings say `name`
myst_heading_anchors = 2

sphinx_gallery_conf = {
    "examples_dirs": "course",
    "gallery_dirs": "_course",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_memory": False,
}


def examples_are_code(app, what, name, obj, options, lines):
    """Indented lines after a sentence are code, though docstrings have no double colon before them."""
    text = ""  # the last line that is not empty
    starts = []
    for i, line in enumerate(lines):
        after_sentence = text and not text.startswith((" ", ":", "..", ">>>"))
        if line.startswith("    ") and after_sentence and not lines[i - 1].strip():
            starts.append(i)
        text = line or text
    for start in reversed(starts):
        lines[start:start] = ["::", ""]


def setup(app):
    app.connect("autodoc-process-docstring", examples_are_code)
