"""Pages as HTML: one file that fetches nothing, and runs no script but its own."""

import base64
import hashlib
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedvlm.reporting.view import Page

_LIVE = "page-live.js"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fedvlm.reporting", "templates"),
        autoescape=True,  # all that comes from a file is text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _source(name: str) -> str:
    environment = _environment()
    loader = environment.loader
    if loader is None:  # never: it is set above
        raise LookupError(name)
    return loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(page: Page, *, live: bool = False) -> str:
    """Return a page as HTML.

    Its policy lets in the style and the script that are in it, by their hashes, and nothing else:
    text of a result could not become code even if it weren't escaped.

    Args:
        page: What to show.
        live: Whether the page asks where it came from for what is new.
    """
    style, script = _source("page.css"), _source("page.js")
    if live:
        script += _source(_LIVE)
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(style)}'; "
    policy += f"script-src 'sha256-{_hash(script)}'; base-uri 'none'; form-action 'none'"
    if live:
        policy += "; connect-src 'self'"
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            policy=policy,
            style=Markup(style),  # noqa: S704  our own file
            script=Markup(script),  # noqa: S704  our own file
            live=live,
        )
    )
