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
    steps: Annotated[
        int, typer.Option(help="releases: rounds at client level, else steps; not with --adapter")
    ] = 0,
    delta: Annotated[float, typer.Option(help="delta, well below 1 / number of units")] = 1e-5,
    epsilon: Annotated[float | None, typer.Option(help="target; solves for the noise")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="noise / sensitivity; solves for epsilon")
    ] = None,
    sample_rate: Annotated[
        float, typer.Option(help="chance of a client (or example) to be in a release")
    ] = 1.0,
    adapter: Annotated[
        str, typer.Option(help="head, prototypes or lora: forecast what is left of its gain")
    ] = "",
    clients: Annotated[int, typer.Option(help="clients, for --adapter")] = 10,
    examples: Annotated[float, typer.Option(help="mean images of a client, for --adapter")] = 250,
    classes: Annotated[int, typer.Option(help="captions or classes, for --adapter")] = 1200,
    method: Annotated[str, typer.Option(help="auto (the least bound), pld or rdp")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the noise multiplier for a target epsilon, or epsilon for a noise multiplier."""
    try:
        if adapter:
            _forecast(adapter, clients, examples, classes, epsilon, delta, as_json)
            return
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


def _forecast(
    adapter: str,
    clients: int,
    examples: float,
    classes: int,
    epsilon: float | None,
    delta: float,
    as_json: bool,
) -> None:
    """Print noise against signal, and what is expected to be lost, of an adapter and the others."""
    from fedvlm.privacy.forecast import ADAPTERS, forecast

    levels = (8.0, 3.0, 1.0) if epsilon is None else (epsilon,)
    names = (adapter, *(name for name in ADAPTERS if name != adapter))
    found = [
        forecast(
            name, clients=clients, examples=examples, classes=classes, epsilon=level, delta=delta
        )
        for level in levels
        for name in names
    ]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    typer.echo(f"{clients} clients of {examples:g} images over {classes} classes, delta {delta:g}")
    for one in found:
        typer.echo(
            f"epsilon {one.epsilon:.3g}, {one.adapter}: signal {one.signal:.2g}, noise "
            f"{one.shared:.2g} shared, {one.alone:.2g} if each noises alone: ratio "
            f"{one.ratio:.2g}; it {one.verdict}"
        )
        if one.ratio_client:
            typer.echo(
                f"  each client hidden as a whole, by a trusted server: ratio "
                f"{one.ratio_client:.2g}; it {one.verdict_client}"
            )
    typer.echo(
        "public-only control: a head from public pairs alone costs no epsilon; a gain counts from "
        "there, not from zero-shot"
    )
