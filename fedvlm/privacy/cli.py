"""`fedvlm privacy`: the noise multiplier for a target ε, and the other way round."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from fedvlm.errors import ConfigError, FedVLMError
from fedvlm.privacy.planning import plan

app = typer.Typer(no_args_is_help=True, help="Plan a privacy budget.")


@app.callback()
def _main() -> None:
    """Plan a privacy budget."""


@app.command("plan")
def plan_command(
    steps: Annotated[int, typer.Option(help="releases: rounds at client level, else steps")],
    delta: Annotated[float, typer.Option(help="delta, well below 1 / number of units")],
    epsilon: Annotated[float | None, typer.Option(help="target; solves for the noise")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="noise / sensitivity; solves for epsilon")
    ] = None,
    sample_rate: Annotated[
        float, typer.Option(help="chance of a client (or example) to be in a release")
    ] = 1.0,
    method: Annotated[str, typer.Option(help="auto (the least bound), pld or rdp")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the noise multiplier for a target epsilon, or epsilon for a noise multiplier."""
    try:
        if method not in ("auto", "pld", "rdp"):
            raise ConfigError(f"method must be auto, pld or rdp, got {method!r}")
        found = plan(
            delta=delta,
            sample_rate=sample_rate,
            steps=steps,
            target_epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            method=method,
        )
    except FedVLMError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(
        f"epsilon {found.epsilon:.3f} at delta {found.delta:g}: noise multiplier "
        f"{found.noise_multiplier:.3f}, {found.steps} releases, sample rate "
        f"{found.sample_rate:g} ({found.method})"
    )
