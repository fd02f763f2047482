"""What a query will cost, before it runs: counted on shapes by the code that will run."""

from dataclasses import dataclass

from secure.errors import ParameterError
from secure.smpc._query import Query, requirements
from secure.smpc._timing import local_seconds
from secure.smpc.program import Program, weight_count

#: `lan`, `wan`, or (bits a second, seconds one way).
Network = str | tuple[float, float]
NETWORKS = {"lan": (1e9, 0.0005), "wan": (1e8, 0.02)}


@dataclass(frozen=True)
class Cost:
    """The price of one query.

    Attributes:
        rounds: Messages that must wait for one another; the same for both parties.
        server_bytes: Bytes that the server sends while the query runs, frame headers included.
        client_bytes: The same of the client.
        dealer_bytes: Bytes of correlated randomness that the dealer sends to the server for this
            query (the client's is a 32-byte key).
        setup_bytes: Bytes of masked weights that the client receives once a model.
        network_s: Seconds of latency and transfer on the network asked for.
        compute_s: Seconds of arithmetic: each kind of operation is run and timed on this machine.
    """

    rounds: int
    server_bytes: int
    client_bytes: int
    dealer_bytes: int
    setup_bytes: int
    network_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        """Online seconds: network and arithmetic."""
        return self.network_s + self.compute_s


def predict(program: Program, query: Query, network: Network = "lan") -> Cost:
    """Predict what one query costs.

    Rounds and bytes are exact: the protocols' own code runs on shapes. Seconds are an estimate from
    below, for two machines like this one with a core and its caches to spare each.

    Args:
        program: The program.
        query: What is asked.
        network: `lan` (1 Gbit/s, 0.5 ms one way), `wan` (100 Mbit/s, 20 ms one way), or a pair
            (bits a second, seconds one way).

    Raises:
        ParameterError: Unknown network, or a bandwidth that isn't positive.
    """
    if isinstance(network, str):
        if network not in NETWORKS:
            raise ParameterError(f"network is lan, wan or a pair, got {network!r}")
        network = NETWORKS[network]
    bandwidth, latency = network
    if not (bandwidth > 0 and latency >= 0):
        raise ParameterError("a network has a positive bandwidth and no negative latency")
    needs = requirements(program, query)
    traffic = needs.server
    most = max(traffic.sent_bytes, traffic.received_bytes)
    return Cost(
        rounds=traffic.rounds,
        server_bytes=traffic.sent_bytes,
        client_bytes=traffic.received_bytes,
        dealer_bytes=sum(item.dealt_bytes for item in needs.items),
        setup_bytes=8 * weight_count(program),
        network_s=traffic.rounds * latency + 8 * most / bandwidth,
        compute_s=local_seconds(program, query),
    )
