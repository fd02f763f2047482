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
    from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

# Their aggregate_train uses the replies only through the weighted mean.
_MEAN_ONLY = (FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi)
_DECLARED = "aggregates_mean_only"


def refuse_single_updates(strategy: Strategy) -> None:
    """Refuse a strategy that may look at single updates, or of which a part would never run.

    Raises:
        PolicyError: Its `aggregate_train` is not known to use the weighted mean alone, it has a
            `start` of its own, or a function of its own that aggregates metrics.
    """
    kind = type(strategy)
    owner = next(each for each in kind.__mro__ if "aggregate_train" in vars(each))
    if owner not in _MEAN_ONLY and vars(owner).get(_DECLARED) is not True:
        raise PolicyError(
            f"{kind.__name__} can't run under secure aggregation: {owner.__name__}.aggregate_train "
            "may look at single updates, and the server gets only their sum. Use FedAvg, FedProx, "
            f"FedAvgM, FedAdagrad, FedAdam or FedYogi, or set {_DECLARED} = True on a class "
            "that uses nothing but the weighted mean"
        )
    if kind.start is not Strategy.start:
        raise PolicyError(
            f"{kind.__name__} has a start() of its own, which would never be called: start the "
            "outer strategy, and move what it does into configure_train and aggregate_train"
        )
    for name in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
        function = getattr(strategy, name, aggregate_metricrecords)
        if function is not aggregate_metricrecords and not getattr(function, _DECLARED, False):
            raise PolicyError(
                f"{name} would see one reply, which holds the means of the metrics, and none of "
                f"the clients' own. Leave it out, or set {_DECLARED} = True on a function that "
                "is right for that"
            )
