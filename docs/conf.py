"""How `python -m sphinx docs FOLDER` makes the site of these pages and of the package's docstrings.

Sphinx with MyST and the book theme, as the sites of jax, flax, optax and chex have them: they are
maintained, read docstrings in the style of this package as they are, and leave the pages plain
Markdown. (mkdocs, which equinox' site is made with, has had no release since 2024.)
"""

import re
import sys
import types
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxrobust

project = "jaxrobust"
author = "The jaxrobust authors"
version = release = jaxrobust.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # notebooks are kept with their outputs, and a test runs them

html_theme = "sphinx_book_theme"
html_title = "jaxrobust"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 1,
    "use_download_button": False,
    "navbar_persistent": [],  # the search field stands in the sidebar alone
}

# Anchors of headings are those that GitHub makes, so links work in both places.
myst_heading_anchors = 3

# A name in single backticks leads to its page where it has one; an argument stays as it is.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource", "no-value": True}
autodoc_typehints_format = "short"
autosummary_generate = False
# Fields of a dataclass are its parameters.
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

_PACKAGES = tuple(name for name in jaxrobust.__all__ if name != "__version__")
_log = logging.getLogger(__name__)


def list_public_names(app, what, name, obj, options, lines):
    """Adds to a package's docstring a table of what its `__all__` has, each with its first line."""
    if what != "module" or not hasattr(obj, "__all__"):
        return
    values = {n: getattr(obj, n) for n in obj.__all__}
    callables = [n for n, value in values.items() if callable(value)]
    if callables:
        lines += ["", ".. autosummary::", "   :nosignatures:", "", *(f"   {n}" for n in callables)]
    here = ModuleAnalyzer.for_module(obj.__name__).find_attr_docs()  # autodoc finds these itself
    for constant, value in values.items():
        if not (callable(value) or isinstance(value, types.ModuleType) or ("", constant) in here):
            text = comment_of(constant, value, obj.__name__)
            lines += ["", f".. py:data:: {constant}", "", *(f"   {line}" for line in text)]
    lines.append("")


def comment_of(name, value, package):
    """The string beneath a constant, in whichever file of the package makes it."""
    for module in [m for m in sys.modules if f"{m}.".startswith(f"{package}.")]:
        if vars(sys.modules[module]).get(name) is value:
            found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name))
            if found:
                return found
    _log.warning("%s.%s has no string beneath it that says what it is.", package, name)
    return []


def write_fractions(app, what, name, obj, options, signature, returned):
    """An epsilon of 8 / 255 is not to be read as 0.03137254901960784."""

    def fraction(number):
        return f"{float(number[0]) * 255:g} / 255"

    return signature and re.sub(r"\b0\.0\d{12,}", fraction, signature), returned


def find_short_name(app, env, node, contnode):
    """Docstrings say `training.fit`, `Stochastic`, `fit(...)`: where that leads to.

    A name of one of our packages that does not exist is a warning, and so an error of the strict
    build.
    """
    found = re.match(r"(?:jaxrobust\.)?([A-Za-z_][\w.]*)", node["reftarget"])
    if node.get("reftype") != "obj" or found is None:
        return None
    name = found[1].rstrip(".")
    package, _, rest = name.partition(".")
    if rest and package in _PACKAGES and not _exists(name):
        _log.warning("there is no jaxrobust.%s", name, location=node)
    if not rest and not name[:1].isupper():
        return None  # an argument, most likely
    domain = env.get_domain("py")
    known = sorted(full for full in domain.objects if full.endswith(f".{name}"))
    if not known:
        return None
    entry = domain.objects[min(known, key=len)]  # the shortest is the public one
    builder = app.builder
    return make_refnode(builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def _exists(name):
    value = jaxrobust
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", list_public_names)
    app.connect("autodoc-process-signature", write_fractions)
    app.connect("missing-reference", find_short_name)
