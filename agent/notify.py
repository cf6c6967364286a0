"""Tell systemd how far the agent is (sd_notify(3)), where systemd asked to be told."""

from __future__ import annotations

import logging
import os
import socket

from agent.logs import fields

log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send ``state``, such as ``READY=1``, to the service manager; nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # a name in Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect(address)
            connection.sendall(state.encode())
    except OSError as error:
        # The variable is inherited also by what runs where the manager's socket is not, as in a container.
        log.warning("the service manager cannot be told", extra=fields(socket=address, state=state, error=error))
