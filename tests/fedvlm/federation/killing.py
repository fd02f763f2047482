"""Runs a federation, kills its process at random moments of every phase, and resumes it.

    python -m tests.fedvlm.federation.killing SETTINGS.json OUT SEED KILLS

A program of its own: it loads everything once and forks, so that a start costs no imports. A kill
is SIGKILL: nothing is told, flushed or tidied up. Prints what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from fedvlm.config import config_from
from fedvlm.deploy.run import read_events
from fedvlm.errors import FedVLMError
from fedvlm.federation import load_task, simulate
from fedvlm.federation.node_ledger import FILE as LEDGER
from fedvlm.federation.watch import FILE

MOST_DELAY_S = 0.08
PATIENCE_S = 120.0


def child(config, out: Path, resume: bool) -> int:
    """Run it in a process of its own; returns its id."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(out.parent / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        simulate(config, out=out, resume=resume)
        code = 0
    except FedVLMError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        code = 3
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def name_of(event: dict) -> str:
    return f"{event['event']} {event.get('trip', '')}".strip()


def over(number: int) -> int | None:
    """Return a process's exit code; None while it runs."""
    found, status = os.waitpid(number, os.WNOHANG)
    return None if found == 0 else os.waitstatus_to_exitcode(status)


def until(number: int, out: Path, place: int, phase: str) -> tuple[int | None, str]:
    """Wait until a phase begins; returns the exit code if it ended before, and the last event."""
    last, end = "", time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        place, events = read_events(out / FILE, place)
        for event in events:
            last = name_of(event)
            if last == phase:
                return None, last
        code = over(number)
        if code is not None:
            return code, last
        time.sleep(0.002)
    raise SystemExit(f"{phase} did not begin; last: {last}")


def ledgers(out: Path) -> dict[str, dict]:
    """Return what each node has counted; a torn file would raise."""
    found = sorted((out / "nodes").glob(f"*/{LEDGER}"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def epsilon(config, kept: dict) -> float:
    from fedvlm.federation.node_ledger import _ledger

    events = kept.get("events", {}).get("example", [])
    return _ledger("example", 1e9, config.privacy.delta, events).spent.value if events else 0.0


def main() -> None:
    settings, out, seed, kills = sys.argv[1:]
    config = config_from(json.loads(Path(settings).read_text()))
    folder, rng = Path(out), random.Random(int(seed))
    import torch

    torch.set_num_threads(1)
    load_task(config)
    whole = child(config, folder / "whole" / "run", False)
    code = os.waitstatus_to_exitcode(os.waitpid(whole, 0)[1])
    if code:
        raise SystemExit((folder / "whole" / "child.log").read_text())
    _, events = read_events(folder / "whole" / "run" / FILE, 0)
    # In the order of a round, so that each is met; the end of the run is none to be killed in.
    phases = list(dict.fromkeys(map(name_of, events)))
    phases.remove("done")
    run, told, spent = folder / "cut" / "run", [], []
    resume = False
    code = None
    while len(told) < int(kills):
        phase = phases[len(told) % len(phases)]
        place = read_events(run / FILE, 0)[0] if resume else 0
        if not resume and (run / FILE).exists():
            (run / FILE).unlink()
        number = child(config, run, resume)
        code, last = until(number, run, place, phase)
        if code is not None:
            break
        time.sleep(rng.uniform(0, MOST_DELAY_S))
        os.kill(number, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        _, events = read_events(run / FILE, place)
        told.append([phase, name_of(events[-1]) if events else last, code])
        resume = (run / "checkpoint.npz").exists()
        if config.privacy.dp == "example":
            spent.append(
                {
                    node: [kept.get("answers", 0), epsilon(config, kept)]
                    for node, kept in ledgers(run).items()
                }
            )
    if code is not None and code >= 0 and len(told) < int(kills):
        raise SystemExit(f"ended ({code}) after {len(told)} kills; {log(run)}")
    number = child(config, run, resume)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    report = {"phases": phases, "kills": told, "code": code, "log": log(run), "spent": spent}
    if config.privacy.dp == "example":
        for name, place in (("end", run), ("whole", folder / "whole" / "run")):
            report[name] = {
                n: [k.get("answers", 0), epsilon(config, k)] for n, k in ledgers(place).items()
            }
    print(json.dumps(report))


def log(run: Path) -> str:
    path = run.parent / "child.log"
    return path.read_text()[-2000:] if path.exists() else ""


if __name__ == "__main__":
    main()
