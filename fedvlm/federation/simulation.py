"""A federation in this process."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedvlm.config import Config, to_run_config
from fedvlm.config.rules import keeps_personal
from fedvlm.federation.answering import HE_KEY
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import ClientFn, InProcessGrid
from fedvlm.federation.mitigated import require_material
from fedvlm.federation.result import Result
from fedvlm.federation.run import OnRound, _ignore
from fedvlm.federation.task import Progress, device_of, load_task, quiet
from fedvlm.federation.terms import he_policy
from fedvlm.federation.watch import Listener, _nobody
from fedvlm.federation.watched import watched_federation
from fedvlm.models.placement import side_by_side

if TYPE_CHECKING:
    from secure.aggregation import Roster


def _give_folders(grid: InProcessGrid, config: Config, out: Path, resume: bool) -> None:
    """Give the simulated nodes folders of their own for ledgers and personal parts."""
    if config.privacy.dp not in ("example", "distributed") and not keeps_personal(config):
        return
    place = out / "nodes"
    if not resume and place.exists():
        shutil.rmtree(place)  # of an earlier run, whose nodes these are not
    for number, node in enumerate(grid.node_ids):
        grid.contexts[node].node_config["state"] = str(place / str(number))


@contextmanager
def give_keys(grid: InProcessGrid, config: Config) -> "Iterator[Roster | None]":
    """Give the simulated nodes their keys, for this run only: one each, or under HE one for all.

    Yields the public halves, where there are any: the server's.
    """
    if config.protection.protect == "plain":
        yield None
        return
    if config.protection.protect == "he":
        from secure.he.policy import provision_key

        with tempfile.TemporaryDirectory() as name:
            key = Path(name) / HE_KEY
            provision_key(key, he_policy(config))
            for context in grid.contexts.values():
                context.node_config["he-key"] = str(key)
            yield None
        return
    from secure.aggregation import provision

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        roster = provision(folder / "keys", config.nodes)
        for number, context in enumerate(grid.contexts.values()):
            context.node_config["secagg-identity"] = str(folder / "keys" / f"{number}.key")
            context.node_config["secagg-roster"] = str(folder / "keys" / "roster.json")
        yield roster


def simulate(
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress = quiet,
    on_round: OnRound = _ignore,
    client: ClientFn = app,
    on_event: Listener = _nobody,
) -> Result:
    """Federate an adapter over simulated clients, all in this process.

    Each client runs Flower's `ClientApp` and sees only its own pairs and its messages; the grid
    between them is this process. It is a simulation: everybody's data is on one machine.

    Args:
        config: What to run; the defaults where None.
        out: Folder for checkpoint, adapter, transcript and result; None keeps nothing.
        resume: Go on from the checkpoint in `out`.
        progress: Called with (task, done, total) during preparation.
        on_round: Called with each round's entry as soon as it is known.
        client: What every node runs; another one to simulate an attacker among them.
        on_event: Called with each event as it comes: who is asked, who has answered.

    Returns:
        The result.

    Raises:
        FedVLMError: See `run_federation`.
    """
    config = config or Config()
    if config.mitigation.asked:
        require_material(load_task(config, progress))
    workers = side_by_side(config.server.workers, device_of(config))
    grid = InProcessGrid(client, config.nodes, to_run_config(config), workers)
    folder = Path(out) if out is not None else None
    if folder is not None:
        _give_folders(grid, config, folder, resume)
    try:
        with give_keys(grid, config) as roster:
            return watched_federation(
                grid,
                config,
                out=folder,
                resume=resume,
                progress=progress,
                on_round=on_round,
                on_event=on_event,
                roster=roster,
            )
    except Exception as error:
        # In a deployment the reason stays with the client; in one process it is ours to show.
        if grid.errors:
            raise next(iter(grid.errors.values())) from error
        raise
