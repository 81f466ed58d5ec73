"""Sphinx configuration of the documentation. Build: python -m sphinx -W --keep-going -b html docs build/docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from diffprobe import __version__  # noqa: E402  (the path above comes first)

project = "diffprobe"
author = "the diffprobe developers"
project_copyright = "the diffprobe developers, Apache-2.0"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "myst_nb",
    "generated_pages",
    "docstrings",
]
exclude_patterns = ["_ext", "results", "_generated/*-reference.md"]  # the references are included in pages
html_theme = "furo"
html_title = f"diffprobe {version}"
html_static_path = ["_static"]
html_css_files = ["diffprobe.css"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/docs/test_notebooks.py executes them
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
default_role = "code"
highlight_language = "text"  # indented blocks are commands
suppress_warnings = ["ref.python"]  # each probe has a `Config`: a link by that bare name may be to any of them
