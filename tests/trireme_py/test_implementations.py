"""That the tests of the data path run on the data path they say they do."""

from __future__ import annotations

import pytest

from tests.harness.shop import Shop
from trireme_py.datapath import Datapath
from trireme_py.fast import FastDatapath


def test_each_variant_has_its_own_data_path(request: pytest.FixtureRequest) -> None:
    expected = {"python": Datapath, "c": FastDatapath}[request.node.callspec.params["implementation"]]
    shop = Shop()
    assert {type(pod.datapath) for pod in (shop.client, shop.server)} == {expected}
