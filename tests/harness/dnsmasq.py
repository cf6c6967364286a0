"""A real resolver, Debian's dnsmasq, in a pod of a lab."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from agent.lab import LabPod

ANSWERS = ("192.0.2.80", "2001:db8::80")
"""What every name of ``test`` has, by family."""


def find() -> str | None:
    """Return the program, None where there is none."""
    return shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/sbin:/bin")


@contextlib.contextmanager
def resolver(pod: LabPod, port: int, directory: Path) -> Iterator[None]:
    """Serve both addresses of a pod, for ``*.test`` alone; it is ended by its own process id."""
    program = find()
    assert program is not None, "dnsmasq is not installed: run scripts/setup"
    log = (directory / "dnsmasq.log").open("wb")
    command = [
        program, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-daemon",
        *(f"--address=/test/{answer}" for answer in ANSWERS), f"--port={port}", "--bind-interfaces",
        f"--listen-address={pod.ipv4}", f"--listen-address={pod.ipv6}", "--user=root", "--pid-file",
    ]  # fmt: skip
    running = pod.run(lambda: subprocess.Popen(command, stdout=log, stderr=log))
    try:
        deadline = time.monotonic() + 5
        while not pod.command("ss", "-Hlnu", f"sport = :{port}").strip():
            assert running.poll() is None, (directory / "dnsmasq.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        running.terminate()
        running.wait(5)
        log.close()
