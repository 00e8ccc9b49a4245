"""Sphinx's settings: `make docs` builds the site of these pages, without a network."""

import importlib.metadata
import re

from sphinx.application import Sphinx

project = "damo_torchrec"
copyright = "the authors of damo_torchrec. Apache-2.0"
release = importlib.metadata.version("damo-torchrec")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images/README.md"]
myst_heading_anchors = 3
default_role = "py:obj"  # of what docstrings have in single backquotes

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = f"damo_torchrec {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False

_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def _name_files_of_the_project(_: Sphinx, page: str, source: list[str]) -> None:
    """Links to files that lie beside docs/, which the site does not have, become their text."""
    if "/" not in page:
        source[0] = _OUT_OF_DOCS.sub(r"\1", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _name_files_of_the_project)
