"""One configuration over several seeds: a run each; what is finished is read from its folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedvlm.config import Config, config_from
from fedvlm.config.whole import UNDECIDED
from fedvlm.errors import ConfigError
from fedvlm.federation.result import FILE, Result
from fedvlm.federation.simulation import simulate

Run = Callable[..., Result]


def folder_of(out: Path, seed: int) -> Path:
    """Return the folder of a seed's run."""
    return out / f"seed-{seed}"


def run_seeds(
    config: Config,
    seeds: Sequence[int],
    out: Path | None = None,
    *,
    named: Callable[[Path, int], Path] = folder_of,
    run: Run = simulate,
    before: Callable[[int, bool], None] = lambda seed, kept: None,
    **how: Any,
) -> list[Result]:
    """Run a configuration once a seed.

    Args:
        config: What to run; its seed is not looked at.
        seeds: In the order of the results; at least 2, all different, or nothing could be said
            of their spread.
        out: Folder of the runs; None keeps nothing.
        named: Folder of a seed's run.
        run: What runs one; `fedvlm.simulate`.
        before: Told each seed, and whether its run is read and not run.
        how: Further arguments of `run`.

    Returns:
        A result each. A run that is finished is read, one that was stopped goes on.

    Raises:
        ConfigError: Fewer than 2 seeds, one twice, or a folder holds a run of other settings.
    """
    if len(set(seeds)) < max(2, len(seeds)):
        raise ConfigError(f"an interval needs at least 2 different seeds; got {list(seeds)}")
    results = []
    for seed in seeds:
        wanted = config_from({"seed": seed}, config)
        folder = None if out is None else named(out, seed)
        kept = None if folder is None else _finished(folder, wanted)
        before(seed, kept is not None)
        if kept is not None:
            results.append(kept)
            continue
        resume = folder is not None and (folder / "checkpoint.npz").exists()
        results.append(run(wanted, out=folder, resume=resume, **how))
    return results


def _finished(folder: Path, wanted: Config) -> Result | None:
    if not (folder / FILE).exists():
        return None
    found = Result.load(folder)
    held, now = config_from(found.config).by_name(), wanted.by_name()
    changed = [name for name in now if name not in UNDECIDED and held[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} was {held[name]!r}, is {now[name]!r}" for name in changed)
        raise ConfigError(
            f"{folder} holds a run of another configuration: {told}; take another folder, or "
            "--overwrite"
        )
    return found
