"""The server: an ordinary strategy, and one line for secure aggregation."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from secagg_app.task import POLICY, SHAPE
from secure.aggregation.flower import SecAggStrategy

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    clients = int(config["clients"])
    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy = SecAggStrategy(inner, POLICY, trip_timeout_s=float(config["trip-timeout"]))
    result = strategy.start(
        grid,
        ArrayRecord({"w": Array(np.zeros(SHAPE, dtype=np.float32))}),
        num_rounds=int(config["num-server-rounds"]),
    )
    told = {
        "w": result.arrays["w"].numpy().tolist() if "w" in result.arrays else None,
        "metrics": {str(k): dict(v) for k, v in result.train_metrics_clientapp.items()},
        "history": [asdict(record) for record in strategy.history],
    }
    Path(str(config["out"])).write_text(json.dumps(told))
