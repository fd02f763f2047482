"""Differential privacy: mechanisms, accountants, samplers, and a ledger with a budget.

A mechanism owns the noise that is drawn and the event that ε is computed from.
"""

from fedvlm.privacy.accounting import epsilon, noise_multiplier_for
from fedvlm.privacy.events import RenyiEvent, SkellamEvent
from fedvlm.privacy.ledger import ClientEpsilon, Epsilon, ExampleEpsilon, Ledger
from fedvlm.privacy.mechanisms import GaussianMechanism, Mechanism, Relation
from fedvlm.privacy.noise import NoiseSource, SecureNoise, SimulatedNoise, poisson_sample
from fedvlm.privacy.planning import Plan, plan

__all__ = [
    "ClientEpsilon",
    "Epsilon",
    "ExampleEpsilon",
    "GaussianMechanism",
    "Ledger",
    "Mechanism",
    "NoiseSource",
    "Plan",
    "Relation",
    "RenyiEvent",
    "SecureNoise",
    "SimulatedNoise",
    "SkellamEvent",
    "epsilon",
    "noise_multiplier_for",
    "plan",
    "poisson_sample",
]
