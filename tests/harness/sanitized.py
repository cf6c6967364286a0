"""A pytest plugin: tests get the fast path that `make fastpath-asan` built with sanitizers, not the installed one."""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

NAME = "trireme_py._fastpath"
BUILT = Path(__file__).parents[2] / "build" / "asan" / "trireme_py" / "_fastpath.abi3.so"

loader = ExtensionFileLoader(NAME, str(BUILT))
spec = spec_from_loader(NAME, loader)
assert spec is not None
sys.modules[NAME] = module_from_spec(spec)
loader.exec_module(sys.modules[NAME])
