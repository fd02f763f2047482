"""Sphinx configuration."""

project = "fedvlm"
copyright = "The fedvlm developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
html_theme = "furo"
html_title = "fedvlm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build", "figures", "notebooks"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False
# A name that two packages have (each tree has its own IntegrityError) is linked to the first.
suppress_warnings = ["ref.python"]
