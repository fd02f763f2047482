"""U5: a result doesn't depend on how many threads torch may use."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_references_and_federation_are_the_same_with_any_number_of_threads(small_run, tmp_path):
    settings = small_run | {"rounds": 2, "references": True, "reference_epochs": 2, "workers": 2}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    found = []
    for threads in ("1", "2"):
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"FEDVLM_CACHE": str(tmp_path / threads), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "fedvlm.cli", "simulate", "--json", *options],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        for entry in result["rounds"]:
            for key in [key for key in entry if key.endswith("_seconds")]:
                entry.pop(key)
        found.append((result["summary"], result["rounds"], result["adapter"]))
    assert found[0][0]["local_only"] is not None
    assert found[0] == found[1]
