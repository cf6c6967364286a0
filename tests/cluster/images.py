"""Container images without Docker: tar files as ``docker save`` writes them, of programs that need no library."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAUSE = "registry.k8s.io/pause:3.10"
AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
"""The name the upstream end-to-end tests ask for; with a busybox, so that ``kubectl exec ... sh`` works."""
COREDNS = "registry.k8s.io/coredns/coredns:v1.15.0"

_BUSYBOX_COMMANDS = ("cat", "grep", "ip", "ls", "nc", "nslookup", "ping", "ps", "sh", "sleep", "timeout", "wget")


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one layer: files by their place in it, and the command it runs."""

    name: str
    files: Mapping[str, Path]
    entrypoint: Sequence[str]
    command: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folders = {str(parent) for path in [*image.files, *image.links, *image.texts] for parent in Path(path).parents}
        for folder in [*sorted(folders - {"."}), "tmp"]:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        for path, source in image.files.items():
            _add(archive, path, source.read_bytes(), 0o755)
        for path, target in image.links.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
        for path, text in image.texts.items():
            _add(archive, path, text.encode())
    return buffer.getvalue()


def write(image: Image, target: Path) -> None:
    """Write an image as one tar file, which ``ctr images import`` takes. The same files make the same octets."""
    layer = _layer(image)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Cmd": list(image.command),
            "Env": ["PATH=/usr/bin:/bin:/"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    text = json.dumps(config).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [image.name], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        _add(archive, "layer.tar", layer)
        _add(archive, name, text)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def write_all(programs: Path, busybox: Path, folder: Path) -> None:
    """Write the images every cluster has.

    Args:
        programs: the folder with pause, agnhost and coredns.
        busybox: a busybox that needs no library.
    """
    users = {"etc/passwd": "root:x:0:0:root:/:/bin/sh\n", "etc/group": "root:x:0:\n"}
    commands = {f"bin/{name}": "busybox" for name in _BUSYBOX_COMMANDS}
    agnhost = Image(
        AGNHOST,
        {"agnhost": programs / "agnhost", "bin/busybox": busybox},
        ["/agnhost"],
        ["pause"],
        commands,
        users,
    )
    write(agnhost, folder / "agnhost.tar")
    write(Image(PAUSE, {"pause": programs / "pause"}, ["/pause"]), folder / "pause.tar")
    write(Image(COREDNS, {"coredns": programs / "coredns"}, ["/coredns"]), folder / "coredns.tar")
