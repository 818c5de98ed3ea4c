"""The pages: `make docs` executes the course and writes build/docs/index.html."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
project = "pyconv"
copyright = "The pyconv authors"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["course"]  # the gallery writes its pages to _course
html_theme = "furo"
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
    """The indented examples of module docstrings, which have no double colon before them."""
    starts = [
        i for i in range(1, len(lines)) if lines[i].startswith("    ") and not lines[i - 1].strip()
    ]
    for start in reversed(starts if what == "module" else []):
        lines[start:start] = ["::", ""]


def setup(app):
    app.connect("autodoc-process-docstring", examples_are_code)
