"""An ordinary Flower app, which knows nothing of secure aggregation: the thing to be protected."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

SECRET = "patient-4711"


def initial() -> ArrayRecord:
    return ArrayRecord(
        {
            "conv.weight": Array(np.full((3, 2), 0.5, dtype=np.float32)),
            "conv.bias": Array(np.zeros(3, dtype=np.float64)),
            "norm.batches": Array(np.array(4, dtype=np.int64)),
        }
    )


def make_app(mods=(), scale: float = 0.01, fails: tuple[int, ...] = ()) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        if partition in fails:
            raise RuntimeError(f"{SECRET} is broken")
        arrays = {name: each.numpy() for name, each in message.content["arrays"].items()}
        rng = np.random.default_rng([partition, message.content["config"]["server-round"]])
        for name in ("conv.weight", "conv.bias"):
            step = scale * rng.uniform(-1, 1, arrays[name].shape)
            arrays[name] = (arrays[name] + step).astype(arrays[name].dtype)
        arrays["norm.batches"] = arrays["norm.batches"] + 10 + partition
        content = RecordDict(
            {
                "arrays": ArrayRecord(
                    {name: Array(np.asarray(each)) for name, each in arrays.items()}
                ),
                "metrics": MetricRecord(
                    {"num-examples": 10 + partition, "train-loss": 1.5 + partition}
                ),
                "notes": ConfigRecord({"who": SECRET}),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        partition = context.node_config["partition-id"]
        metrics = MetricRecord({"num-examples": 5 + partition, "accuracy": 0.1 * partition})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app
