"""Machines made of namespaces: a first process that holds them, daemons in cgroups of their own, and their end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.cluster.layout import BIN, CONTROL, LOGS, MACHINES, NODES, STATE, Machine

CGROUPS = Path("/sys/fs/cgroup")
BRIDGE = "br0"
NAMESPACES = ("net", "mount", "uts", "ipc", "pid")
PATH = f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"
_FIRST = "first"
"""The cgroup of a machine's first process."""

_ENTER = 'while [ "$1" != -- ]; do echo 0 >"$1"; shift; done; shift; exec "$@"'
"""Puts the shell into the cgroups given before ``--`` and becomes the command given after it."""


class ClusterError(Exception):
    """The cluster cannot do what was asked; says what to run next."""


def need_root() -> None:
    """Refuse whoever is not root.

    Raises:
        ClusterError: if it is not root who asks.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "the cluster is made of namespaces, mounts and cgroups: run this as root (sudo make cluster)"
        )


def ip(*arguments: str) -> None:
    """Run ``ip``.

    Raises:
        ClusterError: with what ``ip`` said.
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


# -- cgroups -----------------------------------------------------------------------------------------------------------


def _hierarchies() -> list[Path]:
    """Where cgroup hierarchies are mounted: one folder per controller, and the unified one."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    found = [Path(where) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]
    return [path for path in found if path.is_relative_to(CGROUPS)]


def _make_cgroup(name: str) -> list[Path]:
    """Make one cgroup in every hierarchy; return the files that take processes into it."""
    files = []
    for hierarchy in _hierarchies():
        folder = hierarchy
        for part in Path(name).parts:
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            for limits in ("cpuset.cpus", "cpuset.mems"):  # of the first version: while empty, it takes no process
                if (parent / limits).exists() and not (folder / limits).read_text(encoding="ascii").strip():
                    (folder / limits).write_text((parent / limits).read_text(encoding="ascii"), encoding="ascii")
        files.append(folder / "cgroup.procs")
    return files


def processes(cgroup: str) -> list[int]:
    """The processes of a cgroup and of those below it."""
    found: set[int] = set()
    for hierarchy in _hierarchies():
        for file in (hierarchy / cgroup).rglob("cgroup.procs"):
            try:
                found.update(int(pid) for pid in file.read_text(encoding="ascii").split())
            except OSError:  # it went while we looked
                continue
    return sorted(found - {0})


def kill(cgroup: str) -> None:
    """Kill every process of a cgroup and of those below it, and wait until they have ended."""
    while pids := processes(cgroup):
        for descriptor in [_killed(pid) for pid in pids]:
            if descriptor is not None:
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll()
                os.close(descriptor)


def _killed(pid: int) -> int | None:
    """Kill a process and return the descriptor that is readable when it has ended; None if it has already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    return descriptor


def _remove_cgroup(name: str) -> None:
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            os.rmdir(folder)


# -- machines ----------------------------------------------------------------------------------------------------------


def first_process(machine: Machine) -> int:
    """The process that holds a machine's namespaces, as this computer numbers it.

    Raises:
        ClusterError: if the machine is not there.
    """
    for pid in processes(f"{machine.name}/{_FIRST}"):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
        if len(numbers) > 1 and numbers[-1] == "1":
            return pid
    raise ClusterError(f"machine {machine.name} of the test cluster is not running: make cluster")


def running() -> bool:
    """Whether any part of a cluster is there."""
    return any(machine.namespace.exists() for machine in MACHINES)


def enter(machine: Machine, *command: str) -> list[str]:
    """The command line that runs a command inside a machine."""
    spaces = [f"--{name}" for name in NAMESPACES]
    return ["nsenter", f"--target={first_process(machine)}", *spaces, "--wdns=/", "--", *command]


def _daemon(cgroup: str, log: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
    groups = [str(path) for path in _make_cgroup(cgroup)]
    line = ["sh", "-c", _ENTER, "enter", *groups, "--", "setsid", "--fork", *command]
    with log.open("a") as output:
        subprocess.run(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, check=True)


def start(machine: Machine, name: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
    """Start a daemon inside a machine, in the cgroup ``MACHINE/NAME``; its output goes to the cluster's logs."""
    log = LOGS / f"{machine.name}-{name}.log"
    variables = {"PATH": PATH, **(environment or {})}
    _daemon(f"{machine.name}/{name}", log, enter(machine, *command), variables)


def start_outside(name: str, *command: str) -> None:
    """Start a helper on this computer itself; it ends with the control plane."""
    _daemon(f"{CONTROL.name}/{name}", LOGS / f"{name}.log", command, dict(os.environ))


def stop(machine: Machine, name: str) -> None:
    """Kill a daemon, as a crash would, and wait until it has ended. Asked nicely, an API server may take a minute."""
    kill(f"{machine.name}/{name}")


def alive(machine: Machine, name: str) -> bool:
    return bool(processes(f"{machine.name}/{name}"))


def make(machine: Machine) -> None:
    """Make a machine's namespaces and start its first process; return when daemons can be started in it.

    Raises:
        ClusterError: with what its first process said.
    """
    machine.folder.mkdir(parents=True, exist_ok=True)
    ip("netns", "add", machine.name)
    for setting in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"):
        subprocess.run(["ip", "netns", "exec", machine.name, "sysctl", "-qw", setting], check=True)
    groups = [str(path) for path in _make_cgroup(f"{machine.name}/{_FIRST}")]
    script = ["sh", str(Path(__file__).with_name("machine.sh")), machine.name, str(machine.folder)]
    spaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--", *script]
    line = ["sh", "-c", _ENTER, "enter", *groups, "--", "nsenter", f"--net={machine.namespace}", "--", *spaces]
    log = LOGS / f"{machine.name}.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    assert process.stdout is not None
    with process.stdout as output:
        said = output.readline()
    if said != b"ready\n":
        raise ClusterError(f"machine {machine.name} did not start: {log.read_text(encoding='utf-8').strip()}")
    process.returncode = 0  # it outlives us: not ours to wait for


def connect() -> None:
    """Connect all machines by a bridge in the control plane's namespace, and route the nodes' pods to them."""
    bridge = CONTROL.name
    ip("-n", bridge, "link", "add", BRIDGE, "type", "bridge")
    ip("-n", bridge, "link", "set", BRIDGE, "up")
    for node in NODES:
        port = node.name.removeprefix("trm-")
        ip("-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node.name)
        ip("-n", bridge, "link", "set", port, "master", BRIDGE, "up")
        ip("-n", node.name, "link", "set", "eth0", "up")
    for machine in MACHINES:
        device = BRIDGE if machine is CONTROL else "eth0"
        for own in machine.addresses:
            ip("-n", machine.name, "addr", "add", f"{own}/{24 if own.version == 4 else 64}", "dev", device)
        for node in NODES:
            for pods, via in zip(node.pods or (), node.addresses, strict=True):
                if node is not machine:
                    ip("-n", machine.name, "route", "add", str(pods), "via", str(via))
        if machine is not CONTROL:  # so that a Service's address has a route before it is translated
            for via in CONTROL.addresses:
                ip("-n", machine.name, "route", "add", "default", "via", str(via))


def remove(machines: Iterable[Machine] = MACHINES) -> None:
    """End every process of the machines, and leave no namespace, mount or cgroup of theirs."""
    for machine in machines:
        kill(machine.name)
        _remove_cgroup(machine.name)
        if machine.namespace.exists():
            ip("netns", "del", machine.name)


def remnants() -> list[str]:
    """What of a cluster is on this computer, by name: nothing, once ``remove`` is done."""
    found = [str(machine.namespace) for machine in MACHINES if machine.namespace.exists()]
    found += [str(path) for machine in MACHINES for each in _hierarchies() if (path := each / machine.name).exists()]
    mounts = (line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
    return found + [where for where in mounts if Path(where).is_relative_to(STATE)]
