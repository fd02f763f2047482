"""Keys from the command line: `python -m secure.aggregation keys …`."""

from pathlib import Path
from typing import Annotated

import typer

from secure.aggregation._keys import Identity, Roster
from secure.aggregation._provision import load_identity, provision, save_identity
from secure.errors import ParameterError, SecureError
from secure.random import SecureRandom

app = typer.Typer(
    help="Secure aggregation: keys of nodes.", no_args_is_help=True, add_completion=False
)
keys = typer.Typer(help="Make identities, and the roster that lists them.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@app.callback()
def _main() -> None:
    """Hold the commands under their names."""


@keys.command("new")
def new(path: Annotated[Path, typer.Argument(help="file for the private key, not there yet")]):
    """Make a node's identity on the node itself, and print its public key for the roster."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        identity = Identity.generate(SecureRandom())
        save_identity(identity, path)
    except FileExistsError:
        raise ParameterError(f"{path} is there already; name another file") from None
    except OSError as error:
        raise ParameterError(f"{path} can't be written ({type(error).__name__})") from None
    typer.echo(identity.public_key.hex())


@keys.command("show")
def show(path: Annotated[Path, typer.Argument(help="file of a private key")]):
    """Print the public key of an identity."""
    typer.echo(load_identity(path).public_key.hex())


@keys.command("roster")
def roster(
    path: Annotated[Path, typer.Argument(help="file for the roster")],
    members: Annotated[list[str], typer.Argument(help="public keys in hexadecimal, or MEMBER=KEY")],
):
    """Write the roster of all nodes; every node and the server get a copy of the same one."""
    listed: dict[int, bytes] = {}
    for place, text in enumerate(members, 1):
        number, equals, key = text.rpartition("=")
        try:
            member = int(number) if equals else place
            public = bytes.fromhex(key)
        except ValueError:
            raise ParameterError(f"{text[:80]!r} is no KEY or MEMBER=KEY in hexadecimal") from None
        if member in listed:
            raise ParameterError(f"member {member} is listed twice")
        listed[member] = public
    try:
        Roster(listed).save(path)
    except OSError as error:
        raise ParameterError(f"{path} can't be written ({type(error).__name__})") from None
    typer.echo(f"{len(listed)} members: {path}")


@keys.command("simulation")
def simulation(
    directory: Annotated[Path, typer.Argument(help="folder for all keys, made where missing")],
    clients: Annotated[int, typer.Argument(help="number of clients", min=1)],
):
    """Make all keys and the roster in one folder, for a simulation on one machine."""
    provision(directory, clients)
    typer.echo(f"{clients} keys and a roster: {directory}")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 done, 2 wrong usage."""
    try:
        return (
            app(args=arguments, prog_name="python -m secure.aggregation", standalone_mode=False)
            or 0
        )
    except SecureError as error:
        typer.echo(f"error: {error}", err=True)
    except Exception as error:
        # Typer's own errors: click may be its own copy, so that there is no class to name.
        text = getattr(error, "format_message", None)
        if text is None:
            raise
        typer.echo(f"error: {text()}", err=True)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
