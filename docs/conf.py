"""The documentation site: Sphinx, MyST, Furo. `make docs` builds it; nothing is fetched while it builds."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import demp
import generate

generate.write(HERE / "reference")

project = "demp"
author = "the authors of demp"
version = release = demp.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
html_theme = "furo"
html_title = "demp"
html_copy_source = False
html_show_sphinx = False
pygments_style = "tango"
