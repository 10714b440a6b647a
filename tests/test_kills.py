"""Kill -9 at moments drawn at random; ``LIT_COSINE_KILLS=100`` for the soak (some three minutes)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("LIT_COSINE_KILLS", "10"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that it kills")
def test_chains_of_killed_runs_end_as_the_run_nobody_killed(tmp_path):
    script = Path(__file__).with_name("resumable.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(KILLS), "5", str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    chains = json.loads(done.stdout.splitlines()[-1])
    assert sum(chain["kills"] for chain in chains) >= KILLS
    assert {chain["accumulate"] for chain in chains} == {1, 4}
    assert [chain for chain in chains if not chain["exact"]] == []
