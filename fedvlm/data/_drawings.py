"""From icons to PNG: what the embedded data sets have in common."""

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from fedvlm.data.fetch import read_json
from fedvlm.errors import DataError

Progress = Callable[[str, int, int], None]

_CHUNK = 64


def quiet(task: str, done: int, total: int) -> None:
    """Report no progress."""


def normalise(code: str) -> str:
    """Drop the variation selectors, which some designers write and others don't."""
    return "-".join(p for p in code.upper().split("-") if p not in ("FE0F", "FE0E"))


def icon_names(tarballs: dict[str, Path]) -> dict[str, list[str]]:
    """Map a code point to the names that any of the sets gives it (two sets ship no map)."""
    names: dict[str, list[str]] = {}
    for tarball in tarballs.values():
        for code, name in read_json(tarball, "package/chars.json").items():
            known = names.setdefault(normalise(code), [])
            if name not in known:
                known.append(name)
    return names


def svg_of(icons: dict, name: str) -> str | None:
    """Return the drawing of an icon or of the icon that it is an alias of."""
    seen = set()
    while name not in icons["icons"]:
        if name in seen or name not in icons.get("aliases", {}):
            return None
        seen.add(name)
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _render(svgs: list[str], size: int) -> list[bytes]:
    """Render drawings to PNG on white. Runs in a worker process: resvg keeps the GIL."""
    import resvg_py

    return [
        resvg_py.svg_to_bytes(
            svg_string=svg,
            background="#ffffff",
            width=size,
            height=size,
            skip_system_fonts=True,
        )
        for svg in svgs
    ]


def is_blank(png: bytes) -> bool:
    from PIL import Image

    low, high = Image.open(io.BytesIO(png)).convert("L").getextrema()
    return low == high  # pyright: ignore[reportOperatorIssue]


def require_renderer() -> None:
    """Refuse to start where drawings can't be rendered.

    Raises:
        DataError: The renderer is not installed.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise DataError(
            'resvg-py is not installed; install it with: pip install "fedvlm[embedded]"'
        ) from error


def render_all(svgs: list[str], size: int, progress: Progress) -> list[bytes]:
    """Render drawings to square PNG on white, in processes side by side.

    Args:
        svgs: Drawings.
        size: Side in pixels.
        progress: Called with ("render", done, total).
    """
    chunks = [svgs[start : start + _CHUNK] for start in range(0, len(svgs), _CHUNK)]
    pngs: list[bytes] = []
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for rendered in pool.map(_render, chunks, repeat(size)):
            pngs += rendered
            progress("render", len(pngs), len(svgs))
    return pngs
