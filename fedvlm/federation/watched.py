"""A federation that writes down what happens on the way, and tells it to who listens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from fedvlm.config import Config
from fedvlm.errors import FedVLMError
from fedvlm.federation.result import Result
from fedvlm.federation.run import OnRound, _ignore, check_writable, run_federation
from fedvlm.federation.task import Progress, quiet
from fedvlm.federation.watch import Listener, ProgressFile, WatchedGrid, _nobody

if TYPE_CHECKING:
    from secure.aggregation import Roster


def watched_federation(
    grid: Grid,
    config: Config,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = quiet,
    on_round: OnRound = _ignore,
    on_event: Listener = _nobody,
    roster: "Roster | None" = None,
) -> Result:
    """Run a federation as `run_federation` does, with its events in `out/progress.jsonl`.

    Args:
        grid: As for `run_federation`, as are those below.
        config: What to run.
        out: Folder for all that is kept.
        resume: Go on from the checkpoint in `out`.
        progress: Called with (task, done, total).
        on_round: Called with each round's entry, those of before a resume included.
        on_event: Called with each event of this start: `start`, `asked`, `trip`, `round`, and in
            the end `done` or `failed`.
        roster: As for `run_federation`.

    Returns:
        The result.
    """
    if out is not None:
        check_writable(out)
    events = ProgressFile(out, resume, on_event)
    watched = WatchedGrid(grid, events, secret=config.privacy.dp == "client")

    def on_entry(entry: dict[str, Any]) -> None:
        watched.end_trip()
        events.round(entry)
        on_round(entry)

    events.write(
        "start",
        rounds=config.training.rounds,
        clients=config.nodes,
        protect=config.protection.protect,
    )
    try:
        result = run_federation(
            watched,
            config,
            out=out,
            resume=resume,
            progress=progress,
            on_round=on_entry,
            roster=roster,
        )
    except FedVLMError as error:
        events.write("failed", text=str(error), code=error.exit_code)
        raise
    except Exception as error:
        events.write("failed", text=f"{type(error).__name__}; see the server's log", code=1)
        raise
    events.write("done")
    return result
