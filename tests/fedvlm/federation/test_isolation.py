"""No node opens another one's folder, and the server opens none: seen at every open of a file.

In one process a mount namespace can't keep parties apart, so what they open is written down. The
deployed scene has the kernel keep them apart as well (tests/deploy/test_scene.py).
"""

import sys
from pathlib import Path

import pytest

from fedvlm.federation.run import run_federation
from tests.fedvlm.federation.failing import FailingGrid, server_config, write_sites

OPENS = ("open", "os.listdir", "os.scandir", "os.rename", "os.remove")
_watching: list[tuple[object, list[tuple[int, str]]]] = []


def _hook(event, arguments):
    if _watching and event in OPENS and arguments and isinstance(arguments[0], str | bytes | Path):
        grid, seen = _watching[-1]
        path = arguments[0].decode() if isinstance(arguments[0], bytes) else str(arguments[0])
        seen.append((getattr(grid, "handling", -1), path))


sys.addaudithook(_hook)  # stays; outside of a test it looks at nothing


class Watched(FailingGrid):
    """Says which node is at work; workers = 1, so that it is one at a time."""

    handling = -1

    def _handle(self, message):
        self.handling = self.node_ids.index(message.metadata.dst_node_id)
        try:
            return super()._handle(message)
        finally:
            self.handling = -1


@pytest.mark.parametrize("protect", ["plain", "secagg-active"])
def test_no_party_opens_another_ones_folder(
    tmp_path, small_run, shapes_folder, tiny_clip_folder, protect
):
    keys = protect != "plain"
    nodes = write_sites(tmp_path / "sites", shapes_folder, tiny_clip_folder, 3, keys)
    config = server_config(small_run, protect=protect, rounds=1, node_scores="last")
    grid, seen = Watched(nodes, config), []
    _watching.append((grid, seen))
    try:
        run_federation(grid, config, out=tmp_path / "run")
    finally:
        _watching.pop()
    assert not grid.errors
    place = tmp_path / "sites"
    for who, path in seen:
        if not Path(path).is_absolute() or place not in Path(path).parents:
            continue
        party = Path(path).relative_to(place).parts
        # Everybody's public keys lie in one folder here, and each private key is its owner's.
        own = {f"node-{who + 1}"} if party[0] != "keys" else {f"{who}.key", "roster.json"}
        assert party[0] in own or party[-1] in own, (who, path)
    # The watch works: each node has read its own images, the server has not.
    for number, node in enumerate(nodes):
        images = {who for who, path in seen if path.startswith(str(node / "data"))}
        assert images == {number}
