"""Property tests of this folder: the same examples in every run, however busy the machine is."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "secagg", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("secagg")
