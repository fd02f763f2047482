"""The server: runs the federation that its run config describes."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedvlm.config.flower import is_for_nodes
from fedvlm.errors import ConfigError
from fedvlm.federation.mitigated import require_material
from fedvlm.federation.server_part import servers_config, servers_roster
from fedvlm.federation.task import load_task
from fedvlm.federation.watched import watched_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation; the run config's `out` names the folder for its result.

    What happens on the way stands in `progress.jsonl` there. With `resume` it goes on from the
    checkpoint there.

    Raises:
        ConfigError: `resume` without `out`; a deployment's run without the server's part.
    """
    out, resume = str(context.run_config.get("out", "")), context.run_config.get("resume", False)
    if type(resume) is not bool:
        raise ConfigError(f"resume must be true or false; got {resume!r}")
    if resume and not out:
        raise ConfigError("resume needs out, the folder of the run to go on with")
    folder = Path(out) if out else None
    config = servers_config(context.run_config, folder)
    roster = servers_roster(config, folder)
    if config.mitigation.asked and not is_for_nodes(context.run_config):
        require_material(load_task(config))  # a simulation: everybody's data are here
    watched_federation(grid, config, out=folder, resume=resume, roster=roster)
