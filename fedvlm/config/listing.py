"""Every setting in a list: for a terminal, and as a page of the documentation.

python -m fedvlm.config.listing docs/settings.md
"""

import math
import sys
import textwrap
from pathlib import Path
from typing import Any

from fedvlm.config._section import AUTO, Entry
from fedvlm.config.flower import PUBLIC
from fedvlm.config.whole import SECTIONS, SETTINGS
from fedvlm.files import write_text

_WIDTH = 96
_PAGE = """\
# Settings

<!-- Made from the code: python -m fedvlm.config.listing docs/settings.md -->

A run is described by a TOML file of tables, one for each section:

```toml
[training]
rounds = 3

[protection]
protect = "secagg"
```

Each setting also has a flat name, which stands outside of the tables (`rounds = 3`). A setting that
is given by both is refused. The same names work after `--set` (`--set training.rounds=3` or
`--set rounds=3`), in `fedvlm.config_from({...})`, and in Flower's run config, where hyphens stand
for underscores: `flwr run . --run-config "training.rounds=3"`. There `data`, `model` and `adapter`
are tables alone: `data.source`, `model.name`, `adapter.kind`.

Nodes of a deployment are told the settings that are marked so, and of `data.source` and
`model.name` only whether they are the embedded ones; the rest stays with the server. What a node
asks for at least is not a setting of a run: it stands in the node's own `node.toml`.
"""


def written(value: Any) -> str:
    """Return a value as TOML has it."""
    if value is None:
        return f'"{AUTO}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'" if "\\" in value else f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed(entry: Entry) -> str:
    """Return what a setting may be: its choices, or its range; empty for any."""
    about = entry.about
    if entry.kind is bool:
        return "true, false" + (f", {AUTO}" if entry.optional else "")
    if about.choices:
        return ", ".join(about.choices)
    if math.isinf(about.low):
        return ""
    low, high = ("(" if about.above else "["), (")" if about.below else "]")
    return f"{low}{_number(about.low)}, {_number(about.high)}{high}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def told(entry: Entry) -> str:
    """Return whether the nodes of a deployment are told a setting."""
    if entry.name in PUBLIC:
        return "whether it is " + PUBLIC[entry.name][0]
    return "no" if entry.about.server else "yes"


def plain() -> str:
    """Return the list for a terminal."""
    lines = ["--set training.rounds=3, or by the flat name in brackets: --set rounds=3", ""]
    for entry in SETTINGS.values():
        flat = f" ({entry.flat})" if entry.flat != entry.key else ""
        kinds = f"  {entry.kind.__name__}  {allowed(entry)}".rstrip()
        lines.append(f"{entry.name}{flat} = {written(entry.default)}{kinds}")
        lines += textwrap.wrap(
            entry.about.words, _WIDTH, initial_indent="    ", subsequent_indent="    "
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page of the documentation, in Markdown."""
    parts = [_PAGE]
    for table, section in SECTIONS.items():
        parts.append(f"\n## [{table}]\n\n{(section.__doc__ or '').strip()}\n\n")
        parts.append(
            "| key | flat name | type | default | range or choices | nodes told | what |\n"
        )
        parts.append("|---|---|---|---|---|---|---|\n")
        for entry in section.entries():
            cells = [
                f"`{entry.key}`",
                f"`{entry.flat}`",
                entry.kind.__name__,
                f"`{_cell(written(entry.default))}`",
                allowed(entry),
                told(entry),
                _cell(entry.about.words),
            ]
            parts.append("| " + " | ".join(cells) + " |\n")
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), page())
