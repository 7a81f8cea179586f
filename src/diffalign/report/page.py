"""A page: sections in order, written as one file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from diffalign import __version__
from diffalign.core import write_text

__all__ = ["Page", "Section", "render"]


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading; empty for none, and no entry in the contents.
        body: HTML in which everything foreign is escaped.
    """

    title: str
    body: Markup


class Page:
    """A page of sections.

    Nothing outside the file is loaded, and a content security policy makes the browser refuse to.

    Args:
        title: heading of the page.
        subtitle: a line below it.

    Example:
        >>> import tempfile
        >>> page = Page("Pairs", "of a test")
        >>> page.add(Section("Notes", Markup("<p>none</p>")))
        >>> path = Path(tempfile.mkdtemp()) / "report.html"
        >>> page.write(path)
        >>> "<p>none</p>" in path.read_text()
        True
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: list[Section] = []

    def add(self, section: Section) -> None:
        """Put a section at the end."""
        self.sections.append(section)

    def html(self) -> Markup:
        """The whole page."""
        script = _static("report.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return render(
            "page.html",
            title=self.title,
            subtitle=self.subtitle,
            sections=self.sections,
            style=Markup(_static("report.css")),
            script=Markup(script),
            script_digest=digest,
            version=__version__,
        )

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            DiffalignError: the place cannot be written.
        """
        write_text(path, self.html())


def render(template: str, **values: Any) -> Markup:
    """A template of this folder with values, each escaped unless it is ``Markup`` already."""
    return Markup(_environment().get_template(template).render(**values))


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("diffalign.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _static(name: str) -> str:
    return (files("diffalign.report") / "static" / name).read_text(encoding="utf-8")
