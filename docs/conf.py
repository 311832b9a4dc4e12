"""Sphinx: `sphinx-build -W --keep-going docs docs/_build`; nothing is fetched from the network."""

from __future__ import annotations

import wkdask

project = "wkdask"
author = "the wkdask authors"
copyright = "the wkdask authors, MIT licence"
version = release = wkdask.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"

html_theme = "furo"
html_title = f"wkdask {release}"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("DTypeLike", "MagLike", "Vec3", "Vec3Like")}
napoleon_google_docstring = False
napoleon_use_rtype = False
