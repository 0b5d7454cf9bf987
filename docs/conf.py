"""Sphinx: `make docs` builds these pages, and the API reference from the docstrings, into site/."""

from ptq4vm import __version__

project = "ptq4vm"
author = "ptq4vm maintainers"
release = version = __version__
html_title = f"ptq4vm {__version__}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_copy_source = False
exclude_patterns = ["images"]

# Single backticks in docstrings are code too.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Headings down to this level can be linked to, as on GitHub.
myst_heading_anchors = 3
# Docstrings write |Δα|, which reStructuredText takes for a substitution.
rst_prolog = r".. |Δα| replace:: \|Δα\|"
