"""Prometheus's own check of what we export."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def complaints(exposition: str) -> str:
    """Return what ``promtool check metrics`` says about our families in a scrape; nothing if all is well.

    Skips the test where there is no promtool, unless nothing may be skipped (TRIREME_REQUIRE_KERNEL, as CI sets it).
    """
    promtool = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if promtool is None:
        missing = "promtool is missing; scripts/setup takes it from the Debian package prometheus"
        if os.environ.get("TRIREME_REQUIRE_KERNEL", "0") not in ("", "0"):
            pytest.fail(missing)
        pytest.skip(missing)
    # The client library's own families (python_info and the like) are not ours to rename.
    ours = "".join(line + "\n" for line in exposition.splitlines() if "trireme_" in line)
    done = subprocess.run([promtool, "check", "metrics"], input=ours, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return said if done.returncode == 0 else f"exit status {done.returncode}: {said}"
