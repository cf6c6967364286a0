"""Kubernetes' own end-to-end tests of NetworkPolicy: all that this kernel can run must pass.

The data path carries TCP and UDP, so the five specs about SCTP are left out; forty-six are left.
"""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.cluster.installation import Installed
from tests.cluster.layout import BIN
from tests.cluster.tiers import TAKES_MINUTES

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="46 tests that each make pods and ask each of them whom it reaches: six minutes"),
    pytest.mark.timeout(2400),
    TAKES_MINUTES,
]

SPECS = 46
_PATIENCE_S = 1800.0
"""Each failing spec asks again for half a minute at each of its steps."""


def test_every_upstream_specification_holds(installed: Installed, tmp_path: Path) -> None:
    report, log = tmp_path / "report.xml", tmp_path / "log"
    command = [str(BIN / "netpol.test"), f"--kubeconfig={installed.cluster.kubeconfig}", "--provider=skeleton"]
    command += ["--ginkgo.skip=SCTP", "--ginkgo.no-color", f"--ginkgo.junit-report={report}"]
    with log.open("wb") as output:
        done = subprocess.run(
            command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT, timeout=_PATIENCE_S, check=False
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    assert report.exists(), f"the tests ended with status {done.returncode} before they reported: {said[-4000:]}"
    states = {case.get("name", ""): case.get("status") for case in ElementTree.parse(report).iter("testcase")}
    specs = {name: state for name, state in states.items() if name.startswith("[It]") and state != "skipped"}
    print("\n" + "\n".join(re.findall(r"^Ran \d+ of .*", said, re.MULTILINE)))
    assert {name: state for name, state in specs.items() if state != "passed"} == {}, said[-20000:]
    assert len(specs) == SPECS
    assert done.returncode == 0
