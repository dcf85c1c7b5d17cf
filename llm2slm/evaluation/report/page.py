"""Common to all pages: frame, style, script and content security policy.

A page loads nothing: style, script and plots are inline, and its Content-Security-Policy allows only the style sheet
with the page's nonce and the script with the given hash. The template engine escapes all text; JavaScript only sorts
tables.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from llm2slm.atomic import write_text
from llm2slm.evaluation.report import tables
from llm2slm.evaluation.report.entries import metric_name
from llm2slm.shown_text import visible


def clean(value: Any) -> Any:
    """The same containers with `visible` strings."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def render_page(template: str, title: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: a file of this folder that extends `page_base.html`.
        title: of the page; `clean` is applied to it, but not to `values`.
        values: variables of the template.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    loader = FunctionLoader(_package_file)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        metric=metric_name, number=tables.number, tokens=tables.length, percent=tables.percent, times=tables.times,
        count=tables.count, seconds=tables.seconds, spread=tables.spread, fact=_fact, markup=Markup,
    )  # fmt: skip
    style, script = _package_file("report_page.css"), _package_file("report_page.js")
    inline = {"title": clean(title), "style": Markup(style), "script": Markup(script)}
    frame = environment.get_template(template)
    # The digest of the page without it: reproducible, and no text of the page can contain it. Not the style's hash:
    # Chromium 156 has twice refused the style sheet by a correct hash on a busy machine, in several hundred runs.
    nonce = _digest(frame.render(policy="", nonce="", **inline, **values))
    return frame.render(policy=_policy(nonce, script), nonce=nonce, **inline, **values)


def write_whole(path: Path, text: str) -> Path:
    """Writes a file atomically and creates its folder; lone surrogates become question marks."""
    return write_text(path, text, errors="replace")


def _package_file(name: str) -> str:
    """A file of this package, or of `compare`, which has its template next to its code."""
    folder = "compare" if name.startswith("comparison") else "report"
    return files("llm2slm.evaluation").joinpath(folder, name).read_text(encoding="utf-8")


def _policy(nonce: str, script: str) -> str:
    """A policy that forbids loading, and allows the style sheet with the nonce and this script only."""
    return (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'sha256-{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode(errors="surrogatepass")).digest()).decode()


def _fact(value: Any) -> str:
    """A value of a run's notes as text."""
    if value is None or isinstance(value, bool):
        return {None: tables.MISSING, True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_fact(item) for item in value)
    return str(value)
