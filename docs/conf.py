"""Settings of the site: MyST pages, notebooks that the build runs, API from docstrings.

``make docs`` builds it, and any warning, such as a link to a page or a heading that
does not exist, ends the build.
"""

import os
import re
from pathlib import Path
from typing import Any

import meta_opt

ROOT = Path(__file__).resolve().parents[1]

project = "meta_opt"
author = "the authors of meta_opt"
copyright = "the authors of meta_opt, Apache-2.0"
release = version = meta_opt.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "code"  # Docstrings name things in single backticks.

html_theme = "furo"
html_title = "meta_opt"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks run in folders of their own and share one folder of pretrained encoders.
os.environ.setdefault("META_OPT_DATA_DIR", str(ROOT / "data"))
# A notebook that has not changed is not run again; its outputs are in _build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Files beside the docs that are pages of the site: a link to the file, which works
# where the repository is browsed, becomes one to the page.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "meta_opt/data/bundled/README.md": "cards/clipart.md",
    "meta_opt/models/weights/nano.md": "cards/nano.md",
    "meta_opt/optimizers/weights/lstm-v3.md": "cards/lstm-v3.md",
    "meta_opt/optimizers/weights/lstm-v4.md": "cards/lstm-v4.md",
    "results/foreign/meta_test.md": "tables/foreign.md",
    "results/meta_test/meta_test.md": "tables/meta_test.md",
    "results/meltr_throughput/meltr_throughput.md": "tables/meltr_throughput.md",
    "results/table1/table1.md": "tables/table1.md",
    "results/ablations/ablations.md": "tables/ablations.md",
    "results/style_choice/style_choice.md": "tables/style_choice.md",
    "results/style_choice/style_validation/style_choice.md": (
        "tables/style_validation.md"
    ),
    "results/balancing/clipart_category/balancing.md": "tables/balancing.md",
}
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def _link_to_pages(text: str, folder: Path) -> str:
    """Replaces links to files of ``PAGES`` and, in included text, to pages.

    Args:
        text: Markdown.
        folder: that its relative links start from.
    """

    def page(found: re.Match[str]) -> str:
        target = found[1]
        if "://" in target:
            return target
        path = (folder / target).resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if name in PAGES:
            return f"/{PAGES[name]}"
        inside = name.startswith("docs/") and path.suffix == ".md"
        return f"/{name.removeprefix('docs/')}" if inside else target

    return _LINK.sub(page, text)


def _read_page(app: Any, name: str, content: list[str]) -> None:
    folder = Path(app.env.doc2path(name)).parent
    content[0] = _link_to_pages(content[0], folder)


def _read_included(app: Any, path: Path, parent: str, content: list[str]) -> None:
    content[0] = _link_to_pages(content[0], (Path(app.srcdir) / path).resolve().parent)


def _skip_fields(
    app: Any, what: str, name: str, obj: object, skip: bool, options: Any
) -> bool | None:
    """Leaves out fields of named tuples, which the class's docstring describes."""
    text = getattr(obj, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Connects the replacement of links and the choice of members."""
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    app.connect("autodoc-skip-member", _skip_fields)
