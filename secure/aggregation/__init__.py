"""Secure aggregation: the server learns the sum of the clients' vectors, and nothing else.

A protocol after Bonawitz et al. (CCS 2017), with the round that makes it hold against a server
that lies, on the sparse graph of Bell et al. (CCS 2020) above 64 clients. `Client` and `Server`
are state machines over typed messages; `secure.aggregation.flower` fits them to Flower.

Example:
    >>> import numpy as np
    >>> from secure.aggregation import LocalAggregator, Policy, plan
    >>> policy = Policy(plan(clients=4, clip_norm=1.0, error=1e-4))
    >>> vectors = [np.full(3, 0.1 * member, dtype=np.float32) for member in range(1, 5)]
    >>> total = LocalAggregator(policy).sum(vectors, drop={"unmask": [2]})
    >>> np.round(total, 2).tolist()
    [1.0, 1.0, 1.0]
"""

from secure.aggregation._client import Client, StageError
from secure.aggregation._graph import Degree, degree
from secure.aggregation._keys import Identity, Roster
from secure.aggregation._local import LocalAggregator, Session, identities, run_session
from secure.aggregation._packing import LANES, lane_for, pack, unpack
from secure.aggregation._payload import Aggregate, Layout, decode, encode
from secure.aggregation._plan import LanePlan, integer_plan, plan
from secure.aggregation._policy import Policy, Sharing
from secure.aggregation._provision import load_identity, provision, save_identity
from secure.aggregation._server import Fault, SecureSum, Server
from secure.aggregation._shamir import combine, random_secret, split
from secure.aggregation._state import ClientState
from secure.flower import RoundRecord, TripRecord

__all__ = [
    "LANES",
    "Aggregate",
    "Client",
    "ClientState",
    "Degree",
    "Fault",
    "Identity",
    "LanePlan",
    "Layout",
    "LocalAggregator",
    "Policy",
    "Roster",
    "RoundRecord",
    "SecureSum",
    "Server",
    "Session",
    "Sharing",
    "StageError",
    "TripRecord",
    "combine",
    "decode",
    "degree",
    "encode",
    "identities",
    "integer_plan",
    "lane_for",
    "load_identity",
    "pack",
    "plan",
    "provision",
    "random_secret",
    "run_session",
    "save_identity",
    "split",
    "unpack",
]
