"""Which tests on a cluster run only when they are asked for."""

from __future__ import annotations

import os

import pytest

TAKES_MINUTES = pytest.mark.skipif(
    os.environ.get("TRIREME_CLUSTER_LONG", "0") in ("", "0"), reason="takes minutes: TRIREME_CLUSTER_LONG=1 runs it"
)
