"""Parts of reports: HTML pages in one file that needs nothing else."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.files import atomic_write

__all__ = ["html_figure", "html_table", "write_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d8dee4; vertical-align: top; }
code { font-size: .85rem; } .note { color: #57606a; } img { max-width: 100%; }
"""


def write_page(path: Path, parts: Sequence[str]) -> Path:
    """Write parts of HTML as a page.

    Raises:
        InputError: the file cannot be written.
    """
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>nas report</title><style>{STYLE}</style></head><body>'
    atomic_write(path, page + "\n".join(parts) + "</body></html>\n")
    return path


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text, which is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def html_figure(drawn: Any, *, plotly: bool) -> str:
    """A figure of plotly's as HTML; the first of a page brings plotly's script along."""
    return str(drawn.to_html(full_html=False, include_plotlyjs=plotly))
