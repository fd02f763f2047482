"""The server: runs the federation that its run config describes."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedvlm.federation.protection import settings_of
from fedvlm.federation.run import run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation; the run config's `out` names the folder for its result."""
    out = str(context.run_config.get("out", ""))
    run_federation(grid, settings_of(context), out=Path(out) if out else None)
