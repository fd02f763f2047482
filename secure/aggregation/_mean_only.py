"""Which strategies may run where the server gets nothing but a sum."""

from secure.errors import MissingExtraError, PolicyError

try:
    from flwr.serverapp.strategy import (
        FedAdagrad,
        FedAdam,
        FedAvg,
        FedAvgM,
        FedProx,
        FedYogi,
        Strategy,
    )
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

# Their aggregate_train uses the replies only through the weighted mean.
_MEAN_ONLY = (FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi)


def refuse_single_updates(strategy: Strategy) -> None:
    """Refuse a strategy that may look at single updates.

    Raises:
        PolicyError: Its `aggregate_train` is not known to use the weighted mean alone.
    """
    kind = type(strategy)
    owner = next(each for each in kind.__mro__ if "aggregate_train" in vars(each))
    if owner in _MEAN_ONLY or vars(owner).get("aggregates_mean_only") is True:
        return
    raise PolicyError(
        f"{kind.__name__} can't run under secure aggregation: {owner.__name__}.aggregate_train "
        "may look at single updates, and the server gets only their sum. Use FedAvg, FedProx, "
        "FedAvgM, FedAdagrad, FedAdam or FedYogi, or set aggregates_mean_only = True on a class "
        "that uses nothing but the weighted mean"
    )
