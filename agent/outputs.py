"""Where verdicts go: counters, the observe socket, and the flow log if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from agent.config import AgentConfig
from agent.flowlog import FlowLog
from agent.metrics import FlowCounts
from agent.observe import ObserveServer
from agent.runtime import RuntimeDirectory
from trireme_py.model import FlowEvent


class Outputs:
    """Made once; what it opens is closed by ``closing``."""

    def __init__(self, config: AgentConfig, runtime: RuntimeDirectory, closing: ExitStack) -> None:
        """Raises ConfigError if a socket or a file cannot be opened."""
        self.counts = FlowCounts()
        self.observe = ObserveServer(runtime.observe_socket)
        closing.callback(self.observe.close)
        self.flow_log = FlowLog(config.flow_log) if config.flow_log else None
        if self.flow_log:
            closing.callback(self.flow_log.close)

    def publish(self, events: Sequence[FlowEvent]) -> None:
        """Hand ``events`` on; called by the data path's thread, and never blocks."""
        self.counts.publish(events)
        self.observe.publish(events)
        if self.flow_log:
            self.flow_log.publish(events)
