"""The manifests as ``kubectl apply -k`` would send them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.layout import CACHE

MANIFESTS = Path(__file__).parents[2] / "manifests"
Object = dict[str, Any]


@cache
def rendered(folder: str) -> str:
    """Return the YAML of a folder below ``manifests/``.

    Skips the test where no kubectl of 2023 or later is: older ones do not know the field ``labels[].includeTemplates``.
    """
    built = sorted(CACHE.glob("go-*/kubectl"))  # the test cluster's
    program = str(built[0]) if built else shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl on this machine: install one, or make cluster, which builds one")
    command = [program, "kustomize", str(MANIFESTS / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def objects(folder: str) -> list[Object]:
    """Return what :func:`rendered` says, decoded."""
    return [item for item in yaml.safe_load_all(rendered(folder)) if item is not None]


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [item for item in found if item["kind"] in kinds]


def pod_specs(found: list[Object]) -> dict[str, Object]:
    """Return the pod templates' specs, by ``kind/name``."""
    workloads = of_kind(found, "DaemonSet", "Deployment")
    return {f"{item['kind']}/{item['metadata']['name']}": item["spec"]["template"]["spec"] for item in workloads}
