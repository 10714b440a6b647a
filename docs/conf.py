"""The site: ``sphinx-build -W docs build/site`` (extra ``docs``)."""

from importlib import metadata

project = "lit_cosine"
author = "the lit_cosine developers"
copyright = "2026, the lit_cosine developers"
version = release = metadata.version("lit-cosine")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# tutorials write logs and checkpoints; their pages show no log lines of Lightning's
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_output_stderr = "remove"

# the default of an argument as it is written, and types where the arguments are described
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "lit_cosine"
html_theme_options = {
    "source_repository": "https://github.com/OWNER/lit_cosine/",
    "source_branch": "main",
    "source_directory": "docs/",
}
exclude_patterns = ["_build", "_options.md"]
