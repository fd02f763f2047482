"""A run's page while it runs: `--watch`, for every command that runs one.

What serves it is imported only where somebody asks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fedvlm.config import Config
    from fedvlm.federation.result import Result

WATCH_HELP = "show the report by round while it runs, from 127.0.0.1; nothing listens unless asked"
PORT_HELP = "where --watch listens on 127.0.0.1; a free port unless said"


def port_of(watch: bool, port: int | None) -> int | None:
    """Return where to listen: nowhere (None) unless asked, and 0 for any free port.

    Example:
        >>> port_of(False, None), port_of(True, None), port_of(False, 8080)
        (None, 0, 8080)
    """
    return (0 if watch else None) if port is None else port


class Watcher(Protocol):
    """Is told what a run does."""

    def event(self, event: dict[str, Any]) -> None:
        """Take an event."""
        ...

    def round(self, entry: dict[str, Any]) -> None:
        """Take a round's entry."""
        ...

    def end(self, result: "Result | None" = None) -> None:
        """Take the result."""
        ...


class Nobody:
    """Looks at nothing."""

    def event(self, event: dict[str, Any]) -> None:
        """Take no notice."""

    def round(self, entry: dict[str, Any]) -> None:
        """Take no notice."""

    def end(self, result: "Result | None" = None) -> None:
        """Take no notice."""


@contextmanager
def watched(config: "Config", port: int | None, say: Callable[[str], None]) -> Iterator[Watcher]:
    """Yield who is told of a run: a page, where a port is given, else nobody.

    Args:
        config: The run's configuration.
        port: Where to listen on 127.0.0.1, 0 for any that is free; None listens nowhere.
        say: Told the page's address.

    Raises:
        ConfigError: The port is taken.
    """
    if port is None:
        yield Nobody()
        return
    from fedvlm.reporting.live import watched_page

    with watched_page(config, port, say) as page:
        yield page
