"""What every Flower fit of `secure` shares: layouts, records of rounds, the frame of a mod.

Importing this package needs no Flower. `secure.flower.app` has the `ClientApp` whose errors leave
as fixed codes, also those of its lifespan.
"""

from secure.flower._history import RoundRecord, TripRecord
from secure.flower._layout import Aggregate, Layout
from secure.flower._refusals import REFUSALS, KeysError
from secure.flower._store import Spent, Store

__all__ = [
    "REFUSALS",
    "Aggregate",
    "KeysError",
    "Layout",
    "RoundRecord",
    "Spent",
    "Store",
    "TripRecord",
]
