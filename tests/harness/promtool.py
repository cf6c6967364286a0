"""Prometheus's own programs: what they say of what we export, and a server that scrapes it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 60.0


def program(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``.

    Skips the test where it is not, unless nothing may be skipped (TRIREME_REQUIRE_KERNEL, as CI sets it).
    """
    path = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if path is None:
        missing = f"{name} is missing; scripts/setup takes it from the Debian package prometheus"
        if os.environ.get("TRIREME_REQUIRE_KERNEL", "0") not in ("", "0"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


def complaints(exposition: str) -> str:
    """Return what ``promtool check metrics`` says about our families in a scrape; nothing if all is well."""
    # The client library's own families (python_info and the like) are not ours to rename.
    ours = "".join(line + "\n" for line in exposition.splitlines() if "trireme_" in line)
    return run_promtool("check", "metrics", stdin=ours)


def run_promtool(*arguments: str, stdin: str = "", cwd: Path | None = None) -> str:
    """Return what promtool said if it did not succeed; else what it warned of."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd)
    said = done.stdout + done.stderr
    return said if done.returncode == 0 else f"exit status {done.returncode}: {said}"


class Prometheus:
    """A real one, which scrapes one target each second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of an instant query. Fails the test if Prometheus does not take the expression."""
        arguments = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{arguments}", timeout=PATIENCE_S) as response:
                return json.load(response)["data"]["result"]  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """Return the result of a query as soon as there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := self.query(expression)):
            # What the server scrapes, and when, it tells nobody: it is asked.
            assert time.monotonic() < deadline, f"no result within {PATIENCE_S} s: {expression}"
            time.sleep(0.1)
        return found


@contextlib.contextmanager
def prometheus(folder: Path, target: str, labels: dict[str, str]) -> Iterator[Prometheus]:
    """Run a Prometheus on a free port of the loopback device that scrapes ``target`` (``ADDRESS:PORT``)."""
    folder.mkdir()
    job = {
        "job_name": "trireme-agent",
        "scrape_interval": "1s",
        "static_configs": [{"targets": [target], "labels": labels}],
    }
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if re.search("ready to receive web requests", line):
                break
        else:
            raise AssertionError("".join(said))
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
