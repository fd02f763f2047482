"""CPU seconds of a whole secure sum by cohort and length: client and server, in this process."""

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from secure.aggregation import (
    Client,
    Layout,
    Policy,
    Server,
    Session,
    decode,
    encode,
    identities,
    plan,
    run_session,
)
from secure.aggregation._keys import verify
from secure.random import SecureRandom

COHORTS = (10, 30, 100, 300, 1000)
LENGTHS = (10_000, 100_000, 1_000_000)
RNG = SecureRandom()


@dataclass(frozen=True)
class Growth:
    """One cell of the table.

    Attributes:
        clients: Size of the cohort.
        length: Parameters.
        dropouts: Clients that dropped out before they sent their masked vector.
        neighbours: Members that each client masks with.
        lane: Bits of a lane.
        client_s: CPU seconds of one client, mean over the cohort, all trips together.
        server_s: CPU seconds of the server, all trips together.
        session_s: CPU seconds of the whole session.
        peak_mib: Largest memory of this process so far.
    """

    clients: int
    length: int
    dropouts: int
    neighbours: int
    lane: int
    client_s: float
    server_s: float
    session_s: float
    peak_mib: float


def measure(clients: int, length: int, dropout: float = 0.1, mode: str = "active") -> Growth:
    """Run one session, and check its sum against the plain one.

    Every client holds the same update, so that a cohort of a thousand fits into memory; each of
    them encodes and masks for itself, and the sum is decoded and compared.
    """
    policy = Policy(plan(clients, 1.0, 1e-4, max_weight=1), mode=mode)  # pyright: ignore[reportArgumentType]
    keys, roster = identities(clients, RNG)
    layout = Layout((("update", (length,), "float32"),), ())
    update = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    update *= 0.9 / float(np.linalg.norm(update))
    # Each client checks every signature; in one process one check of each has to do.
    checked = cache(verify)
    members = {
        member: Client(identity, roster, policy, "growth", RNG, check=checked)
        for member, identity in keys.items()
    }
    gone = list(range(1, clients + 1, round(1 / dropout)))
    timings = Session()
    server = Server(policy, "growth", 1, "train", RNG, roster, checked)
    start = time.process_time()
    words = encode(update, 1.0, {}, policy, RNG)
    encode_s = time.process_time() - start
    summed = run_session(
        server, members, dict.fromkeys(members, words), layout, {"mask": gone}, timings
    )
    session_s = time.process_time() - start
    got = decode(summed.words, layout, policy, len(summed.survivors))
    error = float(np.abs(got.mean - update).max())
    # All clients sent the same levels, so that the mean is one client's rounding away.
    if got.clients != clients - len(gone) or error > policy.plan.step * 1.001:
        raise RuntimeError(f"the sum of {clients} clients is wrong by {error:g}")
    return Growth(
        clients,
        length,
        len(gone),
        policy.sharing(clients).neighbours,
        policy.plan.lane,
        sum(timings.client_s.values()) / clients + encode_s,
        timings.server_s,
        session_s,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def sweep(progress: Callable[[str], None], largest: int = 1000) -> Iterator[Growth]:
    """Measure every cell with up to `largest` clients."""
    for clients in COHORTS:
        for length in LENGTHS:
            if clients <= largest:
                progress(f"growth: {clients} clients, {length} parameters")
                yield measure(clients, length)
