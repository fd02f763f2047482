"""The frame of a mod: what passes, what is refused, and how little a refusal says."""

import logging
from collections.abc import Callable, Collection

from secure.errors import MissingExtraError, ParameterError, PolicyError
from secure.flower._refusals import REFUSALS, refusal

try:
    from flwr.app import Context, Error, Message, RecordDict
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

CallNext = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, CallNext], Message]
Answer = Callable[[str, Message, Context, CallNext], RecordDict]
"""`answer("train" or "evaluate", message, context, call_next)`: the content of the reply."""


def framed(name: str, log: logging.Logger, answer: Answer, queries: Collection[str]) -> Mod:
    """Make a mod of the function that answers under the protocol.

    Args:
        name: Prefix of the fixed codes.
        log: Where this machine keeps the reasons.
        answer: Answers `train` and `evaluate` messages.
        queries: Actions of `query` messages that pass to the app, named by the app's author.

    Guarantees:
        A message of any other type is refused, those of Flower's older clients among them, which
        would be answered by plain weights. No text of an exception leaves the machine.
    """
    allowed = frozenset(queries)

    def mod(message: Message, context: Context, call_next: CallNext) -> Message:
        kind, _, action = str(message.metadata.message_type).partition(".")
        try:
            if kind == "query" and (action or "default") in allowed:
                return call_next(message, context)
            if kind not in ("train", "evaluate"):
                raise PolicyError(f"a {kind[:30]!r} message has no answer under this protocol")
            return Message(answer(kind, message, context, call_next), reply_to=message)
        # The text of an exception may hold data: it stays in this machine's log.
        except Exception as error:
            code = refusal(error)
            log.error(
                "refused a %s message (%s): %s", kind[:30], code, error, exc_info=code == "client"
            )
            return Message(Error(REFUSALS[code], f"{name}: {code}"), reply_to=message)

    return mod


class AppError(ParameterError):
    """The app did not answer, or with an error of its own."""


def ask_app(
    message: Message, context: Context, call_next: CallNext, record: str
) -> tuple[RecordDict, RecordDict]:
    """Hand the app its message without the protocol's record: what it got, and what it answered.

    Raises:
        AppError: The app answered with an error.
    """
    received = RecordDict({name: each for name, each in message.content.items() if name != record})
    message.content = received
    reply = call_next(message, context)
    if reply.has_error():
        raise AppError("the app answered with an error of its own")
    return received, reply.content
