"""An audit names what it audited, and under DP not the data (N3)."""

from types import SimpleNamespace

import pytest

from fedvlm.config import config_from
from fedvlm.federation import load_task
from fedvlm.leakage.audit_run import _identity

OF_DATA = {"data", "splits", "negatives"}


@pytest.mark.parametrize("dp", ["none", "example", "client"])
def test_no_hash_of_the_data_under_dp(small_run, dp):
    task = load_task(config_from(small_run | {"dp": dp}))
    named = _identity(task, SimpleNamespace(negatives_hash="n"))  # pyright: ignore
    assert OF_DATA & set(named) == (OF_DATA if dp == "none" else set())
    assert named["schema"] == task.view.schema
