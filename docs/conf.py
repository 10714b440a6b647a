"""The site: ``sphinx-build -W docs build/site`` (extra ``docs``)."""

import inspect
from importlib import metadata

from sphinx.util.inspect import stringify_signature

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
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build", "_options.md"]


def setup(app):
    """Show the arguments of curves, which have a ``__new__`` that takes any."""

    def signature(app, what, name, obj, options, arguments, returns):
        if what == "class" and arguments and arguments.startswith("(*args"):
            return stringify_signature(
                inspect.signature(obj), show_annotation=False, show_return_annotation=False
            ), None
        return None

    app.connect("autodoc-process-signature", signature)
