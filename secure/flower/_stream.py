"""Flower's own line about results and failures, with the numbers of the sum in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LINE = "%s: Received %s results and %s failures"


@contextmanager
def counted(summed: int, failed: int) -> Iterator[None]:
    """Let Flower say how many clients are in the mean, where it sees one reply.

    Args:
        summed: Clients in the mean.
        failed: Clients that were asked and are not in it.
    """

    def correct(record: logging.LogRecord) -> bool:
        if record.msg == _LINE and isinstance(record.args, tuple) and len(record.args) == 3:
            record.args = (record.args[0], summed, failed)
        return True

    logger = logging.getLogger("flwr")
    logger.addFilter(correct)
    try:
        yield
    finally:
        logger.removeFilter(correct)
