"""What server and clients share: the model's shape, the policy, the local step."""

import numpy as np

from secure.aggregation import Policy, plan

SHAPE = (1000,)
POLICY = Policy(
    plan(clients=8, clip_norm=1.0, error=1e-5, max_weight=100), min_clients=2, weighting="uniform"
)


def step(partition: int, server_round: int) -> np.ndarray:
    """Return the update of a client in a round: known, so that a test can sum it."""
    rng = np.random.default_rng([partition, server_round])
    return (0.01 * rng.uniform(-1, 1, SHAPE)).astype(np.float32)
