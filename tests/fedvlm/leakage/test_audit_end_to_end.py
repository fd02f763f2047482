"""A federation that overfits is audited from every vantage."""

from pathlib import Path

import pytest

from fedvlm.config import config_from
from fedvlm.federation import simulate
from fedvlm.leakage.audit_run import audit_run
from simulations.attack_grid import BASE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_server_that_sees_updates_learns_most(tmp_path: Path) -> None:
    config = config_from({"rounds": 2}, BASE)
    simulate(config, out=tmp_path)
    audit = audit_run(tmp_path, per_client=100)
    best = {one.vantage: one for one in audit.best}
    assert list(best) == ["V1", "V2", "V3", "V4", "V5"]
    assert best["V1"].auc.low > 0.6
    assert best["V2"].auc.value < best["V1"].auc.value
    assert audit.baseline.covers(0.5)
    assert audit.claim is None
    assert not audit.refuted
    assert len(audit.identity["splits"]) == 64
