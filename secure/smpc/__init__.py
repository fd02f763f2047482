"""Private inference: a torch model compiled to a two-party computation with a dealer.

The server owns the weights, the client the input; neither sees the other's. Shares are CrypTen's
(int64 modulo 2^64, 16 fraction bits); the protocols on them are this package's own. Security is
against semi-honest parties that don't collude with the dealer.
"""

from secure.smpc._builder import Affine, Builder, Value
from secure.smpc._cost import Cost, predict
from secure.smpc._handlers import register
from secure.smpc._leakage import Leakage
from secure.smpc._query import Query
from secure.smpc._service import Limits
from secure.smpc.errors import (
    AccuracyError,
    CalibrationError,
    CalibrationWarning,
    MaterialError,
    PlanMismatchError,
    UnsupportedModuleError,
    WireError,
)
from secure.smpc.identities import add_client, make_identities, renew
from secure.smpc.pair import PairResult, infer
from secure.smpc.parcels import Folder
from secure.smpc.parties import Answer, Client, Owner
from secure.smpc.plan import Plan, compile
from secure.smpc.program import Program, read_program
from secure.smpc.tls import Identity, connect, listen

__all__ = [
    "AccuracyError",
    "Affine",
    "Answer",
    "Builder",
    "CalibrationError",
    "CalibrationWarning",
    "Client",
    "Cost",
    "Folder",
    "Identity",
    "Leakage",
    "Limits",
    "MaterialError",
    "Owner",
    "PairResult",
    "Plan",
    "PlanMismatchError",
    "Program",
    "Query",
    "UnsupportedModuleError",
    "Value",
    "WireError",
    "add_client",
    "compile",
    "connect",
    "infer",
    "listen",
    "make_identities",
    "predict",
    "read_program",
    "register",
    "renew",
]
