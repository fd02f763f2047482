"""What leaks: attacks by vantage point, and statistics that say how sure one may be."""

from fedvlm.leakage.audit import AuditResult, audit_attacks
from fedvlm.leakage.units import Claim, EpsilonLower, Interval, Kind, Unit

__all__ = ["AuditResult", "Claim", "EpsilonLower", "Interval", "Kind", "Unit", "audit_attacks"]
