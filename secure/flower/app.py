"""A `ClientApp` that tells nothing of its errors, not even of those in its lifespan.

    app = QuietClientApp(mods=[secagg_mod(policy)])

A mod sits inside the app's lifespan: what a `lifespan` function raises, before or after the
message is handled, never meets it. Flower would send that exception's text to the server.
"""

import logging

from secure.errors import MissingExtraError
from secure.flower._refusals import REFUSALS

try:
    from flwr.app import Context, Error, Message
    from flwr.clientapp import ClientApp
except ImportError:
    raise MissingExtraError("flwr", "sim") from None

__all__ = ["QuietClientApp"]

log = logging.getLogger("secure.flower")


class QuietClientApp(ClientApp):
    """Flower's `ClientApp`, whose exceptions leave as one fixed code.

    Guarantees:
        Whatever its mods, handlers and lifespan raise stays in this machine's log.

    Example:
        >>> app = QuietClientApp(mods=[])
        >>> isinstance(app, ClientApp)
        True
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle a message; an exception becomes the code `client`."""
        try:
            return super().__call__(message, context)
        except Exception:
            log.exception("the app failed on a message")
            return Message(Error(REFUSALS["client"], "app: client"), reply_to=message)
