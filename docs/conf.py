"""Builds the site: `sphinx-build -W docs build/docs` (extra `docs`)."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import vdit

NAMESPACES = ("vdit", "vdit.models", "vdit.data", "vdit.diffusion", "vdit.sampling", "vdit.train", "vdit.experiment")
for namespace in map(importlib.import_module, NAMESPACES):
    for name in namespace.__all__:  # names that are imported on first use are imported now, so that autodoc sees them
        setattr(namespace, name, getattr(namespace, name))

project = "vdit"
author = "the authors of vdit"
copyright = "the authors of vdit, Apache-2.0"
version = release = vdit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "plain_docstrings"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext"]
highlight_language = "none"  # commands and listings; Python says so at its fence
suppress_warnings = ["myst.header"]  # a page may begin with "##"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "imported-members": True, "exclude-members": "AXES"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "vdit"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": [], "navigation_with_keys": True}
