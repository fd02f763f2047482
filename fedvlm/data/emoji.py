"""The embedded data set: the same concepts drawn by six designers, with their CLDR captions.

Domain = designer, topic = CLDR group. The artwork is not part of this project: it is brought as
pinned npm packages, rendered here, and cached (`fedvlm data info` shows licences and authors).
"""

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from fedvlm.data._packages import CAPTIONS, PACKAGES, STYLES, Package
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.fetch import fetch, read_json
from fedvlm.files import cache_dir, whole_file

IMAGE_SIZE = 96
OOD_DOMAIN = "openmoji"
PRETRAINING_DOMAINS = ("noto", "twemoji")
RECIPE = 2  # raise it when rendering changes: the cache is then made anew
_SKIPPED_GROUPS = ("component", "flags")
_INDEX = "pairs.json"


@dataclass(frozen=True)
class _Concept:
    code: str
    caption: str
    topic: str


def is_public(code: str) -> bool:
    """Say whether a concept belongs to the public half, on which the model was pretrained.

    Decided by a hash and not by a seed: the shipped checkpoint and every split must agree.
    """
    return hashlib.sha256(f"fedvlm public {code}".encode()).digest()[0] < 128


def _concepts(tarball: Path) -> list[_Concept]:
    rows = read_json(tarball, "package/en/data.json")
    groups = read_json(tarball, "package/en/messages.json")["groups"]
    topics = {group["order"]: group["message"] for group in groups}
    skipped = {group["order"] for group in groups if group["key"] in _SKIPPED_GROUPS}
    return [
        _Concept(normalise(row["hexcode"]), row["label"].lower(), topics[row["group"]])
        for row in sorted(rows, key=lambda row: row.get("order", 0))
        if row.get("group") is not None and row["group"] not in skipped
    ]


def _drawings(progress: Progress) -> list[tuple[_Concept, Package, str]]:
    tarballs = {}
    for done, package in enumerate(PACKAGES):
        progress("download", done, len(PACKAGES))
        tarballs[package.name] = fetch(package)
    progress("download", len(PACKAGES), len(PACKAGES))
    concepts = _concepts(tarballs[CAPTIONS.name])
    names = icon_names({style.name: tarballs[style.name] for style in STYLES})
    found = []
    for style in STYLES:
        icons = read_json(tarballs[style.name], "package/icons.json")
        for concept in concepts:
            # Where no set maps the code point, the CLDR label itself is the usual icon name.
            fallback = re.sub(r"[^a-z0-9]+", "-", concept.caption).strip("-")
            for name in (*names.get(concept.code, ()), fallback):
                svg = svg_of(icons, name)
                if svg is not None:
                    found.append((concept, style, svg))
                    break
    return found


def _build(path: Path, progress: Progress) -> None:
    """Render every pair and write the archive: images as PNG and one JSON index."""
    require_renderer()
    drawings = _drawings(progress)
    pngs = render_all([svg for _, _, svg in drawings], IMAGE_SIZE, progress)
    rows, blobs, seen = [], [], set()
    for (concept, style, _), png in zip(drawings, pngs, strict=True):
        # Designers reuse one drawing for several code points: keep the first of them only.
        key = (style.domain, hashlib.sha256(png).digest())
        if key in seen or is_blank(png):
            continue
        seen.add(key)
        rows.append([concept.code, concept.caption, concept.topic, style.domain])
        blobs.append(png)
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for row, png in zip(rows, blobs, strict=True):
            archive.writestr(f"{row[3]}/{row[0].lower()}.png", png)
        archive.writestr(_INDEX, json.dumps({"size": IMAGE_SIZE, "pairs": rows}))


def _read(path: Path) -> ImageTextData:
    with zipfile.ZipFile(path) as archive:
        rows = json.loads(archive.read(_INDEX))["pairs"]
        encoded = [archive.read(f"{row[3]}/{row[0].lower()}.png") for row in rows]
    domain_names = tuple(style.domain for style in STYLES)
    topic_names = tuple(dict.fromkeys(row[2] for row in rows))
    concepts = {code: number for number, code in enumerate(dict.fromkeys(r[0] for r in rows))}
    return ImageTextData(
        name="emoji",
        encoded=encoded,
        captions=tuple(row[1] for row in rows),
        concepts=np.array([concepts[row[0]] for row in rows]),
        domains=np.array([domain_names.index(row[3]) for row in rows]),
        topics=np.array([topic_names.index(row[2]) for row in rows]),
        public=np.array([is_public(row[0]) for row in rows]),
        domain_names=domain_names,
        topic_names=topic_names,
        ood_domain=OOD_DOMAIN,
        pretraining_domains=PRETRAINING_DOMAINS,
    )


def archive_path() -> Path:
    """Return where the rendered set is cached; the name changes with packages and recipe."""
    recipe = json.dumps([RECIPE, IMAGE_SIZE, [package.sha256 for package in PACKAGES]])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return cache_dir() / f"emoji-{IMAGE_SIZE}px-{digest}.zip"


def load_emoji(progress: Progress = quiet) -> ImageTextData:
    """Load the embedded set, downloading and rendering it the first time.

    Args:
        progress: Called with (task, done, total) during the first time's work.

    Returns:
        About 8,700 pairs of 1,600 concepts, six domains and eight topics.

    Raises:
        DataError: No network at the first time, or a disk that can't be written.
    """
    path = archive_path()
    return read_or_build(path, _read, lambda: _build(path, progress))
