"""Variants of the embedded data that a trust audit compares: tones, twin captions, flags.

A second archive beside the embedded set's, so that its fingerprints and splits stay as they are.
A tone here is a palette of a drawing. Nothing that is measured on it speaks of people.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.data._archive import read_or_build
from fedvlm.data._drawings import (
    Progress,
    icon_names,
    is_blank,
    normalise,
    quiet,
    render_all,
    require_renderer,
    svg_of,
)
from fedvlm.data._packages import CAPTIONS, PACKAGES, STYLES
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.emoji import IMAGE_SIZE, OOD_DOMAIN, PRETRAINING_DOMAINS, is_public
from fedvlm.data.fetch import fetch, read_json
from fedvlm.files import cache_dir, whole_file

DEFAULT_TONE = "default"
TONES = (DEFAULT_TONE, "light", "medium-light", "medium", "medium-dark", "dark")
"""The yellow default first, then Unicode's five modifiers, U+1F3FB to U+1F3FF."""
RECIPE = 1  # raise it when what is drawn changes: the archive is then made anew
_MODIFIERS = tuple(f"1F3F{letter}" for letter in "BCDEF")
_INDEX = "variants.json"
_FLAGS = "flags"


@dataclass(frozen=True)
class _Wanted:
    """A drawing that a set of variants needs."""

    code: str
    base: str
    caption: str
    label: str
    topic: str
    tone: str


def _tone_of(skin: dict[str, Any]) -> int | None:
    """Return 1 to 5 where a variant has one tone alone, None for mixed couples."""
    tones = skin["tone"] if isinstance(skin["tone"], list) else [skin["tone"]]
    return int(tones[0]) if len(set(tones)) == 1 else None


def _wanted(tarball: Path) -> list[_Wanted]:
    """List the concepts that Unicode gives five tones, and the flags."""
    groups = read_json(tarball, "package/en/messages.json")["groups"]
    topics = {group["order"]: group["message"] for group in groups}
    flags = {group["order"] for group in groups if group["key"] == _FLAGS}
    out = []
    for row in sorted(read_json(tarball, "package/en/data.json"), key=lambda r: r.get("order", 0)):
        if row.get("group") is None:
            continue
        code, caption = normalise(row["hexcode"]), row["label"].lower()
        topic = topics[row["group"]]
        if row["group"] in flags:
            out.append(_Wanted(code, code, caption, caption, topic, ""))
            continue
        toned = {_tone_of(skin): skin for skin in row.get("skins", ())}
        if not {1, 2, 3, 4, 5} <= set(toned):
            continue
        out.append(_Wanted(code, code, caption, caption, topic, DEFAULT_TONE))
        for number in range(1, 6):
            skin = toned[number]
            label = skin["label"].lower()
            place = normalise(skin["hexcode"])
            out.append(_Wanted(place, code, caption, label, topic, TONES[number]))
    return out


def _drawings(progress: Progress) -> list[tuple[_Wanted, str, str]]:
    """Find each wanted drawing in each designer's set; returns it with domain and SVG."""
    tarballs = {}
    for done, package in enumerate(PACKAGES):
        progress("download", done, len(PACKAGES))
        tarballs[package.name] = fetch(package)
    wanted = _wanted(tarballs[CAPTIONS.name])
    names = icon_names({style.name: tarballs[style.name] for style in STYLES})
    found = []
    for style in STYLES:
        icons = read_json(tarballs[style.name], "package/icons.json")
        for one in wanted:
            fallback = re.sub(r"[^a-z0-9]+", "-", one.label).strip("-")
            svgs = (svg_of(icons, name) for name in (*names.get(one.code, ()), fallback))
            svg = next((svg for svg in svgs if svg is not None), None)
            if svg is not None:
                found.append((one, style.domain, svg))
    return found


def complete_sets(
    rows: Iterable[tuple[str, str, str, bytes]],
) -> set[tuple[str, str]]:
    """Return the (domain, concept) whose six tones are all there and all look different.

    Args:
        rows: (domain, concept, tone, image) of each drawing.

    Example:
        >>> tones = [("d", "hand", tone, tone.encode()) for tone in TONES]
        >>> complete_sets(tones)
        {('d', 'hand')}
        >>> complete_sets([*tones[:5], ("d", "hand", "dark", b"light")])
        set()
    """
    sets: dict[tuple[str, str], dict[str, bytes]] = {}
    for domain, concept, tone, image in rows:
        sets.setdefault((domain, concept), {})[tone] = hashlib.sha256(image).digest()
    return {
        key
        for key, tones in sets.items()
        if set(TONES) <= set(tones) and len({tones[tone] for tone in TONES}) == len(TONES)
    }


def _build(path: Path, progress: Progress) -> None:
    """Render tones and flags, and write the archive: images as PNG and one JSON index."""
    require_renderer()
    drawings = _drawings(progress)
    pngs = render_all([svg for _, _, svg in drawings], IMAGE_SIZE, progress)
    toned = [
        (domain, one.base, one.tone, png)
        for (one, domain, _), png in zip(drawings, pngs, strict=True)
        if one.tone and not is_blank(png)
    ]
    complete = complete_sets(toned)
    rows, blobs, seen = [], [], set()
    for (one, domain, _), png in zip(drawings, pngs, strict=True):
        key = (domain, hashlib.sha256(png).digest())
        if one.tone:  # sets stay whole, also where two concepts share their drawings
            kept = (domain, one.base) in complete
        else:
            kept = not is_blank(png) and key not in seen
            seen.add(key)
        if not kept:
            continue
        rows.append([one.code, one.base, one.caption, one.topic, domain, one.tone])
        blobs.append(png)
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for row, png in zip(rows, blobs, strict=True):
            archive.writestr(f"{row[4]}/{row[0].lower()}.png", png)
        archive.writestr(_INDEX, json.dumps({"size": IMAGE_SIZE, "rows": rows}))


def _read(path: Path) -> tuple[list[list[str]], list[bytes]]:
    with zipfile.ZipFile(path) as archive:
        rows = json.loads(archive.read(_INDEX))["rows"]
        return rows, [archive.read(f"{row[4]}/{row[0].lower()}.png") for row in rows]


def archive_path() -> Path:
    """Return where the variants are cached; the name changes with packages and recipe."""
    recipe = json.dumps([RECIPE, IMAGE_SIZE, [package.sha256 for package in PACKAGES]])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return cache_dir() / f"emoji-variants-{IMAGE_SIZE}px-{digest}.zip"


def _as_data(name: str, rows: list[list[str]], encoded: list[bytes]) -> ImageTextData:
    domain_names = tuple(style.domain for style in STYLES)
    topic_names = tuple(dict.fromkeys(row[3] for row in rows))
    concepts = {code: number for number, code in enumerate(dict.fromkeys(r[1] for r in rows))}
    return ImageTextData(
        name=name,
        encoded=encoded,
        captions=tuple(row[2] for row in rows),
        concepts=np.array([concepts[row[1]] for row in rows], dtype=np.int64),
        domains=np.array([domain_names.index(row[4]) for row in rows], dtype=np.int64),
        topics=np.array([topic_names.index(row[3]) for row in rows], dtype=np.int64),
        public=np.array([is_public(row[1]) for row in rows], dtype=bool),
        domain_names=domain_names,
        topic_names=topic_names,
        ood_domain=OOD_DOMAIN,
        pretraining_domains=PRETRAINING_DOMAINS,
        more={"code": tuple(r[1] for r in rows), "tone": tuple(r[5] for r in rows)},
    )


def _load(progress: Progress) -> tuple[list[list[str]], list[bytes]]:
    path = archive_path()
    return read_or_build(path, _read, lambda: _build(path, progress))


def load_tones(progress: Progress = quiet) -> ImageTextData:
    """Load the complete five-tone sets, designer by designer, with the yellow default.

    A set is one concept by one designer in six tones, all drawn and no two alike; captions name no
    tone. `more["tone"]` is in `TONES`, `more["code"]` the concept's code point.

    Args:
        progress: Called with (task, done, total) the first time, which renders for a minute.

    Returns:
        About 9,300 images of 330 concepts.

    Raises:
        DataError: No network at the first time, or a disk that can't be written.
    """
    rows, encoded = _load(progress)
    chosen = [number for number, row in enumerate(rows) if row[5]]
    return _as_data("emoji-tones", [rows[n] for n in chosen], [encoded[n] for n in chosen])


def load_flags(progress: Progress = quiet) -> ImageTextData:
    """Load the flags, which the embedded set leaves out: far concepts in known hands.

    Raises:
        DataError: No network at the first time, or a disk that can't be written.
    """
    rows, encoded = _load(progress)
    chosen = [number for number, row in enumerate(rows) if not row[5]]
    return _as_data("emoji-flags", [rows[n] for n in chosen], [encoded[n] for n in chosen])


def thinned(tones: ImageTextData, designers: int) -> NDArray[np.int64]:
    """Choose whole sets: at most so many designers a concept, in turn, by the concept's number.

    Args:
        tones: From `load_tones`.
        designers: At least 1.

    Returns:
        Rows, ascending; every chosen set is complete.
    """
    kept: list[int] = []
    for concept in np.unique(tones.concepts):
        rows = np.flatnonzero(tones.concepts == concept)
        there = np.unique(tones.domains[rows])
        turn = np.roll(there, -int(concept) % len(there))[:designers]
        kept += rows[np.isin(tones.domains[rows], turn)].tolist()
    return np.sort(np.array(kept, dtype=np.int64))
