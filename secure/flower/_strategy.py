"""What the strategies that see only sums have in common."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from secure.errors import MissingExtraError, PeerError, PolicyError, SecureError
from secure.flower._arrays import only_arrays
from secure.flower._history import RoundRecord
from secure.flower._mean_only import refuse_single_updates
from secure.flower._question import question
from secure.flower._stream import counted
from secure.flower._tensors import Arrays

try:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result, Strategy
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

_T = TypeVar("_T")
DEFAULT_TIMEOUT_S = 300.0


class SummingStrategy(Strategy):
    """A strategy around another one, which it shows one reply: the mean.

    Attributes:
        strategy: The inner strategy.
        history: One `RoundRecord` for each session.

    Raises:
        PolicyError: The inner strategy needs single updates, or has parts that would never run.
    """

    def __init__(self, strategy: Strategy, log: logging.Logger, record: str) -> None:
        refuse_single_updates(strategy)
        self.strategy = strategy
        self.history: list[RoundRecord] = []
        self._log = log
        self._record = record
        self._weight_key = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._array_key = str(getattr(strategy, "arrayrecord_key", "arrays"))
        self._spent: dict[str, int] = {}

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds, as Flower does.

        Raises:
            PeerError: No round succeeded, so that there is no new model.
            PolicyError: The terms can't be met by the clients that the inner strategy draws; no
                message was sent.
        """
        before = len(self.history)
        result = super().start(*args, **kwargs)
        self.require_success(before)
        return result

    def require_success(self, since: int = 0) -> None:
        """Raise if rounds were opened and none of them succeeded.

        `start` does this by itself; whoever drives the strategy otherwise calls it at the end.

        Args:
            since: Entries of `history` that are of an earlier run.

        Raises:
            PeerError: Naming how the last round ended, and what most clients answered.
        """
        rounds = [each for each in self.history[since:] if each.kind == "train"]
        if not rounds or any(each.completed for each in rounds):
            return
        raise PeerError(
            f"none of {len(rounds)} rounds succeeded, and there is no new model. The last one: "
            f"{rounds[-1].reason}{_why(rounds[-1])}"
        )

    @abstractmethod
    def _refuse_cohort(self, size: int) -> None:
        """Raise PolicyError where a session of `size` clients can't succeed."""

    def _checked(self, kind: str, messages: list[Message], grid: Grid) -> str:
        """Refuse a cohort that can't succeed: in the first round for good, later for the round.

        Returns:
            Why the round is abandoned, or "".

        Raises:
            PolicyError: The very first session of this kind can't succeed.
        """
        try:
            self._refuse_cohort(len(messages))
        except PolicyError as error:
            if any(each.kind == kind for each in self.history):
                return str(error)
            raise PolicyError(
                f"{len(messages)} clients are drawn to {kind}, and that can't be summed: {error}. "
                "Draw more (fraction and min nodes of the inner strategy), or lower the policy's "
                "min_clients or corrupt on both sides"
            ) from None
        if kind == "train" and not self.history:
            self._foresee_evaluation(grid)
        return ""

    def _foresee_evaluation(self, grid: Grid) -> None:
        """Refuse before the first message what FedAvg's own numbers say of the evaluation."""
        fraction = getattr(self.strategy, "fraction_evaluate", None)
        least = getattr(self.strategy, "min_evaluate_nodes", None)
        if not isinstance(fraction, int | float) or not isinstance(least, int) or fraction <= 0:
            return
        size = max(int(len(list(grid.get_node_ids())) * fraction), least)
        try:
            self._refuse_cohort(size)
        except PolicyError as error:
            raise PolicyError(
                f"{size} clients would be drawn to evaluate, and that can't be summed: {error}. "
                "Raise fraction_evaluate or min_evaluate_nodes, or set fraction_evaluate=0.0"
            ) from None

    def _same_question(self, messages: Sequence[Message]) -> None:
        """Refuse to ask different clients different things: they would refuse each other.

        Raises:
            PolicyError: Two messages differ.
        """
        first = messages[0]

        def asked(message: Message) -> bytes:
            meta = message.metadata
            return question(message.content, meta.message_type, "", {}, self._record)

        expected = asked(first)
        for message in messages[1:]:
            if message.content is not first.content and asked(message) != expected:
                raise PolicyError(
                    f"{type(self.strategy).__name__} sends clients different models or "
                    "configurations; under secure summing all clients of a round are asked the same"
                )

    def _sent_arrays(self, messages: Sequence[Message]) -> Arrays:
        """Return the model that the inner strategy sends, which the mean is added to."""
        try:
            return only_arrays(messages[0].content, "a train message")
        except SecureError as error:
            raise PolicyError(f"{error}: secure summing needs the one model that is sent") from None

    def _next(self, kind: str, server_round: int) -> int:
        # A strategy that is started again counts from 1, but a client opens no round twice.
        number = max(server_round, self._spent.get(kind, 0) + 1)
        self._spent[kind] = number
        return number

    def _requests(
        self, messages: Iterable[Message], server_round: int, extra: RecordDict
    ) -> list[Message]:
        """Return the inner strategy's messages with the protocol's record in them."""
        return [
            Message(
                RecordDict({**message.content, **extra}),
                message.metadata.dst_node_id,
                message.metadata.message_type,
                group_id=str(server_round),
            )
            for message in messages
        ]

    def _hand_on(self, aggregate: Callable[[int, list[Message]], _T], number: int, mean: Message):
        """Show the inner strategy the mean, with the right count in Flower's own log line."""
        last = self.history[-1]
        kept = last.summed - last.unusable
        with counted(kept, last.asked - kept):
            return aggregate(number, [mean])


def _why(record: RoundRecord) -> str:
    """Say what most clients answered, and what to do about it where that is known."""
    if not record.refusals:
        return ""
    (code, count), *_ = Counter(record.refusals.values()).most_common(1)
    cure = {
        "keys": ": their keys, roster or folder are missing or can't be read; "
        "see Keys in docs/secure-aggregation.md",
        "policy": ": their own terms ask for more than the server's, or for another plan",
        "stage": ": a message came out of turn, or they have answered this round before",
        "client": ": their app fails",
    }.get(code, "")
    return f"; {count} of {record.asked} clients answered {code!r}{cure}. Their logs say why"
