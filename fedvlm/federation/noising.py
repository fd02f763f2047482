"""Which strategy adds and accounts for the noise that a configuration asks for."""

from flwr.serverapp.strategy import FedAvg

from fedvlm.federation.distributed import DistributedStrategy
from fedvlm.federation.private import ClientLevelStrategy, ExampleLevelStrategy, PrivateStrategy
from fedvlm.federation.private_client import all_pairs
from fedvlm.federation.roll import Roll
from fedvlm.federation.task import Task


def private_strategy(inner: FedAvg, task: Task, roll: Roll) -> PrivateStrategy | None:
    """Wrap a strategy in the DP that the configuration asks for; None where it asks for none.

    Args:
        inner: The strategy that turns a mean into the next adapter.
        task: The federation's task.
        roll: Knows the nodes' numbers.

    Raises:
        ConfigError: No noise reaches the wished-for ε.
    """
    if task.config.privacy.dp == "example" and task.config.privacy.shares_noise:
        from fedvlm.federation.shared_noise import SharedNoiseStrategy

        return SharedNoiseStrategy(inner, task.config, task.view.size, all_pairs(task), roll)
    if task.config.privacy.dp == "example" and task.config.has_head:
        from fedvlm.federation.own_noise import OwnNoiseStrategy

        return OwnNoiseStrategy(inner, task.config, all_pairs(task), roll)
    if task.config.privacy.dp == "example":
        return ExampleLevelStrategy(inner, task.config, all_pairs(task), roll)
    if task.config.privacy.dp == "client":
        return ClientLevelStrategy(inner, task.config, roll)
    if task.config.privacy.dp == "distributed":
        return DistributedStrategy(inner, task.config, task.view.size, roll)
    return None
