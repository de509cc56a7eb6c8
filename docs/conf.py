"""Sphinx: the API reference, made of the docstrings. ``make docs`` builds it into docs/_build."""

import captum_cav

project = "captum_cav"
author = project_copyright = "the captum_cav developers"
version = release = captum_cav.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Contribution Analysis Visualization for PyTorch", "page_width": "70em"}
html_show_sourcelink = False

add_module_names = False
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Source", "notes_style")]

# A reference that leads nowhere is an error, unless it leads out of the package, where nothing can be looked up.
# How the package itself makes an Operation is nobody's concern.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!captum_cav).*"),
    ("py:(class|mod)", r"captum_cav\.(propagation|operations)\b.*"),
]
