"""What stands in the files of a party's folder, for the person who gets it."""

NODE_TOML = """\
# This node's own terms. Only its owner writes this file; no server can read or change it.
# Paths are relative to this folder. `fedvlm deploy check .` says what is missing.

number = {number}                # this node among the others, counted from 0
data = "data"              # your images and captions: captions.csv with the columns image, caption
model = {model}         # the base model: "embedded", or a folder of your own
# device = "cuda"          # where it trains: cpu (the default), auto, cuda, cuda:1, mps
# dtype = "bfloat16"       # halves the base model; micro_batch = 16 holds fewer pairs at a time
# public = "public"        # pairs that anybody may see, or "emoji": some mitigations need them
# listed = "forget.txt"    # captions, one a line, that a mitigation leads away from
state = "state"            # where the node counts what it has told; never delete it, never copy it
{keys}
# The floor: the least that you ask for. A run that asks for less is refused before your data are
# opened, and the server learns the reason's name alone. Raise what you like.
[floor]
# How updates must be summed, from what hides least to what hides most:
# plain (the server reads your update), he (it adds up ciphertexts), secagg (it sees the sum alone
# if it follows the protocol), secagg-active (also if it doesn't).
protect = "{protect}"

# Answers that this node gives in all, over every run: 0 for no limit.
rounds = 200

# Fewest nodes in a round. In a sum of two, the other one can subtract itself and read you.
min_clients = 3

# Kinds of adapter that it trains.
adapters = ["lora", "ffa-lora", "prompt", "feature"]

# The base model's weights must be these; empty for any.
model = "{weights}"

# Whether a run may sum up, over all nodes, how well its adapter does on the fifth of your images
# that no run trains on. Such a sum is an answer that counts. Your own is in state/scores.json.
scores = true

# What a run may have it train with beside the loss: any mitigation of this library, and weights by
# loss. Take the sign # away to allow none, or name those that you allow. An adversary reads a
# column of captions.csv: none that attributes doesn't name.
# mitigations = []
# attributes = ["scanner"]

# Differential privacy. Take the sign # away to refuse runs without noise, and to allow no more
# than this epsilon in all and for ever, at this delta at most.
# epsilon = 8.0
# delta = 1e-5
"""

KEYS = {
    "secagg": """
# Your private key for secure aggregation, and everybody's public keys. Nobody else may read the
# first: chmod 600. Compare the second's fingerprint with the other sites, by telephone.
identity = "keys/identity.key"
roster = "roster.json"
""",
    "he": """
# The key that all nodes share for sums under encryption. WHOEVER HOLDS IT READS EVERY UPDATE from
# what the server receives: the server must never get it. chmod 600.
he_key = "keys/he.key"
""",
}

# What is exported keeps the processes from downloading, reporting or asking anything at run time.
_QUIET = """\
# No telemetry, no question for updates, no installation of packages at run time, no model hub.
export FLWR_HOME="$PWD/flwr"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# What is computed from images is kept here: the cache of this party and of no other.
export FEDVLM_CACHE="${FEDVLM_CACHE:-$PWD/cache}"
# Flower starts its helpers by name: they must come from the same installation.
PYTHON="${FEDVLM_PYTHON:-python3}"
PATH="$("$PYTHON" -c 'import sys, os; print(os.path.dirname(sys.executable))'):$PATH"
export PATH
umask 077
mkdir -p flwr cache
"""

START_SERVER = (
    """\
#!/bin/sh
# Starts the SuperLink. End it with Ctrl-C, or by its process id.
#   HOST            address to listen on (default 127.0.0.1; 0.0.0.0 for others to reach it)
#   PORT            port (default {port})
#   FEDVLM_PYTHON   Python that fedvlm is installed in (default python3)
#   FEDVLM_CACHE    cache folder (default: cache, here)
set -eu
cd "$(dirname "$0")"
"""
    + _QUIET.replace("{", "{{").replace("}", "}}")
    + """\
exec flower-superlink --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-{port}}}" \\
    --ssl-ca-certfile tls/ca.crt --ssl-certfile tls/server.crt --ssl-keyfile tls/server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation \\
    --database flwr/superlink.db
"""
)

START_NODE = (
    """\
#!/bin/sh
# Starts this site's SuperNode. It calls the server; nobody calls it. Ctrl-C ends it.
#   SUPERLINK       server as host:port (default {server})
#   NODE_PORT       port on this machine's loopback for its own helpers (default {node_port})
#   MAX_WAIT        seconds to look for a server that is gone before giving up (default 3600)
#   FEDVLM_PYTHON   Python that fedvlm is installed in (default python3)
#   FEDVLM_CACHE    cache folder (default: cache, here)
set -eu
cd "$(dirname "$0")"
"""
    + _QUIET.replace("{", "{{").replace("}", "}}")
    + """\
# Runs one app only: the one that this installation of fedvlm is. A server can't bring another.
exec "$PYTHON" -m fedvlm.deploy.supernode --superlink "${{SUPERLINK:-{server}}}" \\
    --root-certificates tls/ca.crt --auth-supernode-private-key keys/supernode.key \\
    --host 127.0.0.1 --port "${{NODE_PORT:-{node_port}}}" \\
    --ssl-ca-certfile tls/local-ca.crt --ssl-certfile tls/local.crt --ssl-keyfile keys/local.key \\
    --max-wait-time "${{MAX_WAIT:-3600}}" --node-config "node='$PWD/node.toml'"
"""
)

COMPOSE = """\
# {title}. The image is yours to build: Python and `pip install "fedvlm[all]"`, nothing more.
#   FEDVLM_IMAGE   its name
services:
  {service}:
    image: ${{FEDVLM_IMAGE:?name an image that fedvlm is installed in}}
    command: ["sh", "/party/{script}"]
    restart: unless-stopped
    read_only: true
    tmpfs: ["/tmp"]
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    volumes: ["./:/party"]
    environment:
      HOME: /tmp
{more}"""

COMPOSE_SERVER = """\
      HOST: 0.0.0.0
    ports: ["{port}:{port}"]
"""

RUN_TOML = """\
# What is run: `fedvlm deploy run .` sends it to the nodes, and each compares it with its floor.
# Any setting may stand here; `fedvlm simulate --settings` lists them.

[data]
# The server has no data; every node trains on the folder that its own node.toml names.
source = "none"
clients = {clients}

[model]
name = {model}

[training]
rounds = 6

[protection]
protect = "{protect}"
# Fewest nodes in a sum: as many as the nodes' own floors ask for, or they refuse.
min_clients = 3

[server]
# Seconds that nodes have to train in a round, to answer each further message, and to come.
round_timeout = 600.0
trip_timeout = 120.0
join_timeout = 120.0

# One accuracy of the images that the nodes hold out, by a sum like that of updates: after the last
# round, after each, or none (under dp, and in sums under encryption, always none).
node_scores = "{scores}"
"""

README_SERVER = """\
# The server's folder

It holds no data and needs none. It holds the server's own key and only public things of others.

1. `fedvlm deploy check .` says what is missing.
2. `sh start-server.sh` starts the SuperLink on 127.0.0.1:{port}; for other machines
   `HOST=0.0.0.0 sh start-server.sh`. The nodes know it as `{host}:{port}`.
3. In another terminal, once: `fedvlm deploy register .` lets the {clients} nodes in that have a
   public key in `nodes/`. Who has no registered key can't take part.
4. `fedvlm deploy run .` runs what `run.toml` says and follows it. The result, the report and the
   adapter are in `runs/` then.

Keep others than the nodes and yourself from the port by a firewall: Flower lets whoever reaches it
start runs and register nodes, and a run's ServerApp is code that runs here. A node still holds such
a run to its own floor, and runs no other app.

`tls/server.key` is secret. `roster.json` has the fingerprint {roster}; every site must have the
same.
"""

README_NODE = """\
# The folder of node {number}

Made for one site; nobody else should have it. Your images stay on this machine: what leaves it is
an update of an adapter, summed as `node.toml` asks for at least.

1. Install: `pip install "fedvlm[all]"`.
2. Put images and a table `captions.csv` (columns `image`, `caption`) into `data/`, or name another
   folder in `node.toml`.
3. Read the floor in `node.toml`, and raise what you like.
4. `fedvlm deploy check .` — each line says ok, or how to mend it.
5. `sh start-node.sh` — it calls `{server}` and waits for work. Nothing listens to the network.

`keys/` is secret, `state/` is the count of what you have told: back it up never, delete it never.
{origin}
The roster's fingerprint is {roster}. Ask the other sites whether theirs is the same.
"""

REHEARSAL = """
THIS IS A REHEARSAL: whoever ran `deploy init` has seen this folder's keys. For a federation between
owners each site runs `fedvlm deploy join` itself and hands over the public halves alone.
"""
OWN_KEYS = """
The keys were made here, by `fedvlm deploy join`; nobody else has seen them.
"""

README_CA = """\
# The certificate authority

`ca.key` signs certificates that every node believes. It isn't needed to run anything: keep it
offline, or delete it and make all certificates anew when they end (after {days} days).
"""
