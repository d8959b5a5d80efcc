"""Pages in one file that opens offline, and the one that compares runs."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.tables import Table
from meta_opt.text_files import write_text

TEMPLATE = Path(__file__).parent / "comparison.html"


def write_page(
    path: str | Path,
    *,
    title: str,
    summary: str,
    table: Table,
    figure: str | Path,
    examples: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes the page; images are inside it.

    Args:
        path: HTML file, written atomically.
        title: heading.
        summary: one paragraph.
        table: the comparison.
        figure: a PNG file.
        examples: contents of ``examples.json``: ``titles`` and ``images`` (base64 PNG)
            by row as a string, ``queries`` (rows), ``models`` (label to what
            `meta_opt.studies.examples.retrieved` gives).
        facts: facts about how it was measured, by name.
        notes: notes on how to read the table.
    """
    render_page(
        path,
        TEMPLATE,
        title=title,
        summary=summary,
        table=table,
        figure=data_uri(Path(figure).read_bytes()),
        examples=examples,
        facts=facts or {},
        notes=notes,
    )


def render_page(path: str | Path, template: Path, **values: Any) -> None:
    """Writes a page of a template; what is filled in is escaped.

    Args:
        path: HTML file, written atomically.
        template: a file of Jinja's; it may include those of this folder.
        **values: by the names that the template has for them.

    Raises:
        jinja2.UndefinedError: a name of the template that has no value.
    """
    import jinja2

    folders = [template.parent, Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template.name).render(values)
    write_text(path, text)


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Returns a file as the address of itself.

    Args:
        data: the file.
        kind: media type of the data.

    >>> data_uri(b"RIFF", "audio/wav")
    'data:audio/wav;base64,UklGRg=='
    """
    return f"data:{kind};base64," + base64.b64encode(data).decode("ascii")
