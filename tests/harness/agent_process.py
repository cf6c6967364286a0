"""The agent as users run it: a process of its own on a configuration folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from prometheus_client.parser import text_string_to_metric_families

from agent.enroll import create_psk
from agent.lab import LabPod
from policy.objects import NETWORK_NAMESPACE_ANNOTATION
from tests.harness import implementation

PATIENCE_S = 30.0
"""A bound for what happens in a fraction of a second on an idle machine."""


def trireme(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )


class Configuration:
    """A configuration folder under ``root``, with a pre-shared key beside it."""

    def __init__(self, root: Path, router: str, **spec: str) -> None:
        self.folder, self.runtime = root / "config", root / "run"
        self.flow_log = root / "flows.jsonl"
        self.folder.mkdir()
        create_psk(root / "psk.key", os.urandom)
        fields = {
            "trustDomain": "example.org",
            "mode": "psk",
            "credentials": "{presharedKey: ../psk.key}",
            "podRanges": '[10.77.0.0/16, "fd77::/16"]',
            "nodeNetworkNamespace": router,
            "metrics": "127.0.0.1:0",
            "datapath": implementation.name,
            "flowLog": str(self.flow_log),
            "runtimeDirectory": str(self.runtime),
            **spec,
        }
        text = "".join(f"  {name}: {value}\n" for name, value in fields.items())
        self.write("agent.yaml", f"apiVersion: trireme.io/v1alpha1\nkind: AgentConfig\nspec:\n{text}")
        self.write("namespace.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")

    def write(self, name: str, text: str) -> None:
        """Put a file there in one step."""
        fresh = self.folder.parent / f"{name}.new"
        fresh.write_text(text)
        fresh.rename(self.folder / name)

    def pod(self, name: str, pod: LabPod) -> None:
        """Add pod ``shop/<name>`` with the label ``app=<name>``, bound to the lab's pod."""
        self.write(
            f"pod-{name}.yaml",
            f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: {name}}}\n"
            f"  annotations: {{{NETWORK_NAMESPACE_ANNOTATION}: {pod.path}}}\n",
        )

    def policy(self, allowed: str) -> None:
        """Let only pods with ``app=<allowed>`` reach ``shop/server``."""
        self.write(
            "policy.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: only, namespace: shop}\n"
            "spec:\n  podSelector: {matchLabels: {app: server}}\n"
            f"  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {allowed}}}}}}}]}}]\n",
        )

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()


class AgentProcess:
    """A running agent; a context manager that ends it by SIGTERM."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent.cli", "agent", "--config", str(configuration.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> AgentProcess:
        try:
            self.wait_for("msg=ready")
        except BaseException:
            self.end(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(signal.SIGTERM)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _matching(self, words: tuple[str, ...], since: int) -> Iterator[str]:
        return (line for line in self.lines[since:] if all(word in line for word in words))

    def wait_for(self, *words: str, since: int = 0) -> str:
        """Return the first log line, from number ``since`` on, that holds all ``words``; wait for it if need be."""
        with self._news:
            self._news.wait_for(lambda: self._ended or any(self._matching(words, since)), PATIENCE_S)
            for line in self._matching(words, since):
                return line
        raise AssertionError(f"no line with {words} in:\n" + "\n".join(self.lines))

    def after(self, *words: str) -> _After:
        """A context manager: what is done inside makes the agent log a line with ``words``, which is waited for."""
        return _After(self, words)

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def scrape_text(self) -> str:
        """Return the metrics as Prometheus gets them."""
        url = self.wait_for("msg=metrics").partition("url=")[2].split()[0]
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            text: str = response.read().decode()
        return text

    def scrape(self) -> dict[str, float]:
        """Return the metrics, by name with labels sorted: ``name{a=1,b=2}``."""
        samples = {}
        for family in text_string_to_metric_families(self.scrape_text()):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples


class _After:
    def __init__(self, agent: AgentProcess, words: tuple[str, ...]) -> None:
        self._agent = agent
        self._words = words
        self._since = len(agent.lines)

    def __enter__(self) -> None:
        self._since = len(self._agent.lines)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._agent.wait_for(*self._words, since=self._since)
