"""The server: runs the federation that its run config describes."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedvlm.config import config_from
from fedvlm.federation.run import run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation; the run config's `out` names the folder for its result."""
    settings = dict(context.run_config)
    out = str(settings.pop("out", ""))
    config = config_from(settings)
    run_federation(grid, config, out=Path(out) if out else None)
