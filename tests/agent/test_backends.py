from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from agent import rules_restore
from agent.backends import removers
from trireme_py.errors import KernelError


@pytest.mark.parametrize("variants", [("nft",), ("legacy",), ("nft", "legacy")])
def test_cleaning_asks_only_the_variants_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variants: Sequence[str]
) -> None:
    monkeypatch.setattr(rules_restore, "_path", lambda: str(tmp_path))
    with pytest.raises(KernelError, match="apt-get install iptables"):
        removers()
    for variant in variants:
        for family in ("iptables", "ip6tables"):
            (tmp_path / f"{family}-{variant}-save").touch(0o755)
    assert [backend.name for backend in removers()] == [f"iptables-{variant}" for variant in variants]
