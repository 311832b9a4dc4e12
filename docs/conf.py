"""Sphinx: `sphinx-build -W --keep-going docs docs/_build`; nothing is fetched from the network."""

from __future__ import annotations

import shutil
from pathlib import Path

import wkdask

project = "wkdask"
author = "the wkdask authors"
copyright = "the wkdask authors, MIT licence"
version = release = wkdask.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
templates_path = ["_templates"]
autosummary_generate = True
exclude_patterns = ["_build", "_templates", "jupyter_execute"]
default_role = "code"

html_theme = "furo"
html_title = f"wkdask {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["wkdask.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Notebooks are kept without outputs, and run while the pages are built.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).with_name("_build") / ".notebooks")
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
_here = Path(__file__).parent
for made in ("api", "notebooks"):  # what an earlier build left may be gone from the source
    shutil.rmtree(_here / made, ignore_errors=True)
shutil.copytree(_here.parent / "notebooks", _here / "notebooks", dirs_exist_ok=True)

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("DTypeLike", "MagLike", "Vec3", "Vec3Like")}
napoleon_google_docstring = False
napoleon_use_rtype = False
