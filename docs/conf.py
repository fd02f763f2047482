"""Sphinx configuration."""

project = "fedvlm"
copyright = "The fedvlm developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "fedvlm"
exclude_patterns = ["_build", "figures"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False
