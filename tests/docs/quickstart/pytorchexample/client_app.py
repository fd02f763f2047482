"""The client: answers `train` with new weights, and `evaluate` with metrics."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorchexample.task import Net, load_data
from pytorchexample.task import test as test_fn
from pytorchexample.task import train as train_fn

app = ClientApp()


def received(msg: Message):
    """Return the model with the weights that the server sent."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    return model


def data(context: Context):
    """Return this node's loaders."""
    node = context.node_config
    return load_data(node["partition-id"], node["num-partitions"], context.run_config["batch-size"])


@app.train()
def train(msg: Message, context: Context):
    """Train on this node's data."""
    model, (trainloader, _) = received(msg), data(context)
    epochs, lr = context.run_config["local-epochs"], msg.content["config"]["lr"]
    loss = train_fn(model, trainloader, epochs, lr, torch.device("cpu"))
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(trainloader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Score the model on this node's held-out data."""
    model, (_, valloader) = received(msg), data(context)
    loss, accuracy = test_fn(model, valloader, torch.device("cpu"))
    metrics = MetricRecord(
        {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(valloader.dataset)}
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
