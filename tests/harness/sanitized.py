"""A pytest plugin: tests get the fast path in $TRIREME_SANITIZED, which make has built with a sanitizer, not the
installed one (`make fastpath-asan`, `make fastpath-tsan`)."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

NAME = "trireme_py._fastpath"
BUILT = Path(os.environ["TRIREME_SANITIZED"]) / "trireme_py" / "_fastpath.abi3.so"

loader = ExtensionFileLoader(NAME, str(BUILT))
spec = spec_from_loader(NAME, loader)
assert spec is not None
sys.modules[NAME] = module_from_spec(spec)
loader.exec_module(sys.modules[NAME])
