"""The configuration folder as the agent sees it: a broken file counts as it was when it was last good.

The unit is the file. While one is broken, changes in the others apply, and what the broken one held before stays. The
last good text of each file is also kept in the runtime directory, so that an agent that restarts beside a broken file
continues where the one before it stood.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from agent.config import KIND
from policy.files import SUFFIXES, Document, Loaded, Problem, load_file, load_folder
from policy.objects import Object, Pod
from trireme_py.errors import ConfigError

LONGEST_NAME: Final = 200
"""Of a copy, in characters: file systems take 255 octets, and a path can have 4,096."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What the folder asks for: the objects to enforce, and what is wrong."""

    objects: tuple[Object, ...] = ()
    problems: tuple[Problem, ...] = ()
    sources: Mapping[str, Document] = field(default_factory=dict)
    """From ``object.key`` to the document behind it."""

    @property
    def pods(self) -> tuple[Pod, ...]:
        return tuple(item for item in self.objects if isinstance(item, Pod))

    def problem(self, item: Object, field_path: str, message: str, hint: str = "") -> Problem:
        """Return a problem with ``item`` that reading it could not show, at its place in the folder."""
        source = self.sources[item.key]
        return Problem(source.file, source.line_of(field_path), field_path, message, hint)


@dataclass(frozen=True, slots=True)
class _File:
    """The objects of one file, when it was good."""

    objects: tuple[Object, ...]
    sources: Mapping[str, Document]


class FolderReader:
    """Reads the folder again and again; use it from one thread."""

    def __init__(self, folder: Path, last_good: Path) -> None:
        """``last_good``: a directory of ours for the copies; made if it is not there."""
        self._folder = folder
        self._last_good = last_good
        self._good: dict[str, _File] = {}
        self._seen: frozenset[tuple[str, int, int, int]] = frozenset()
        self._own: list[dict[str, Any]] | None = None
        """The agent's own configuration as it was at the start."""
        self._own_files: set[str] = set()
        """Where it was last seen: while that file is broken, it may be there still."""
        self._owners: dict[str, str] = {}
        """From ``object.key`` to the file it was last taken from: a second copy elsewhere does not replace it."""

    def first(self) -> Folder:
        """Read the folder at start-up.

        Raises ConfigError with every problem if a file is broken and no copy of its last good state is there: part of
        the policy would be missing, and nobody would notice.
        """
        self._seen = self._signature()
        loaded = load_folder(self._folder)
        if loaded.problems:
            self._owners = self._earlier_owners()
            loaded = load_folder(self._folder, self._owners)
        orphans: set[str] = set()
        for file in {problem.file for problem in loaded.problems}:
            copy = load_file(self._copy_of(file))
            if copy.problems:
                orphans.add(file)
            else:
                self._good[file] = _File(copy.objects, copy.sources)
        if orphans:
            problems = [str(problem) for problem in loaded.problems if problem.file in orphans]
            advice = f"nothing is enforced anew until this is corrected; run: trireme policy check {self._folder}"
            raise ConfigError("\n".join([*problems, advice]))
        self._forget_others()
        return self._merge(loaded)

    def read(self) -> Folder:
        """Read the folder; broken files stand as they were when they were last good."""
        self._seen = self._signature()
        loaded = load_folder(self._folder, self._owners)
        if any(problem.file == str(self._folder) for problem in loaded.problems):
            # The folder itself cannot be read. It did not become empty; all stays as it was.
            return self._merge(Loaded(problems=loaded.problems), keep_all=True)
        if self._own and not (loaded.objects or loaded.others or loaded.problems):
            # Not even the agent's own configuration is there: nobody wrote this, something was unmounted.
            text = "is empty; what was enforced stays as it was"
            problem = Problem(
                str(self._folder), 0, "", text, "to end enforcement, stop the agent and run: trireme cleanup"
            )
            return self._merge(Loaded(problems=(problem,)), keep_all=True)
        return self._merge(loaded)

    def stale(self) -> bool:
        """Tell whether some file has changed since the folder was last read, without reading any."""
        return self._signature() != self._seen

    def _signature(self) -> frozenset[tuple[str, int, int, int]]:
        found = set()
        # os.walk, unlike Path.rglob, goes on where a directory went away in the midst of it.
        for directory, below, names in os.walk(self._folder):
            below[:] = [name for name in below if not name.startswith(".")]
            wanted = (name for name in names if name.endswith(SUFFIXES) and not name.startswith("."))
            for path in (Path(directory, name) for name in wanted):
                with suppress(OSError):  # it went away in this moment, which shows as a change
                    status = path.stat()
                    found.add((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
        return frozenset(found)

    def _merge(self, loaded: Loaded, *, keep_all: bool = False) -> Folder:
        broken = {problem.file for problem in loaded.problems}
        present: dict[str, list[Object]] = {document.file: [] for document in loaded.others}
        for item in loaded.objects:
            present.setdefault(loaded.sources[item.key].file, []).append(item)
        now = {
            file: _File(tuple(items), {item.key: loaded.sources[item.key] for item in items})
            for file, items in present.items()
            if file not in broken
        }
        for file, content in now.items():
            if self._good.get(file) != content:
                self._keep(file)
        for file in self._good.keys() - now.keys():
            if file in broken or keep_all:
                now[file] = self._good[file]
            else:
                self._copy_of(file).unlink(missing_ok=True)
        self._good = now

        objects: dict[str, Object] = {}
        sources: dict[str, Document] = {}
        owners: dict[str, str] = {}
        # An object that moved from a file that is now broken into a good one is taken from the good one.
        for file in sorted(now, key=lambda file: (file in broken, file)):
            for item in now[file].objects:
                if item.key not in objects:
                    objects[item.key] = item
                    sources[item.key] = now[file].sources[item.key]
                    owners[item.key] = file
        self._owners = owners
        others = () if keep_all else self._others(loaded)
        return Folder(tuple(objects.values()), (*loaded.problems, *others), sources)

    def _others(self, loaded: Loaded) -> Iterator[Problem]:
        """Look at the documents that are not policy; what is wrong with them breaks no file."""
        own = [other for other in loaded.others if other.kind == KIND]
        if self._own is None:
            self._own = [other.data for other in own]
        broken = {problem.file for problem in loaded.problems}
        if len(own) > 1:
            places = ", ".join(f"{other.file}:{other.line}" for other in own)
            text = f"more than one {KIND} document ({places}); the agent would not start again"
            yield Problem(str(self._folder), 0, "", text, "keep one")
        elif self._own and not own and not self._own_files & broken:
            text = f"no {KIND} document is there any more; the agent would not start again"
            yield Problem(str(self._folder), 0, "", text, "put it back")
        if own:
            self._own_files = {other.file for other in own}
        for other in loaded.others:
            if other.kind == KIND and other.data not in self._own and len(own) == 1:
                yield Problem(other.file, other.line, "spec", "changed since the agent started", "restart the agent")
            elif other.kind not in (KIND, ""):
                text = f"{other.kind} is not read by the agent"
                yield Problem(other.file, other.line, "kind", text, "correct the kind, or remove the document")

    def _copy_of(self, file: str) -> Path:
        # Absolute: an agent that is started from another directory finds the copies of the one before it.
        name = quote(os.path.abspath(file), safe="")
        if len(name) > LONGEST_NAME:
            name = f"{name[-LONGEST_NAME:]}.{sha256(name.encode()).hexdigest()[:16]}"
        return self._last_good / f"{name}.yaml"

    def _earlier_owners(self) -> dict[str, str]:
        """Return which file an earlier agent took each object from, as far as its copies tell."""
        owners: dict[str, str] = {}
        for file in sorted(path for path, *_ in self._seen):
            if (copy := self._copy_of(file)).is_file():
                owners.update((item.key, file) for item in load_file(copy).objects)
        return owners

    def _forget_others(self) -> None:
        """Remove the copies of files that went while no agent ran: what is kept is what is in force."""
        kept = {self._copy_of(path).name for path, *_ in self._seen}
        for copy in self._last_good.glob("*.yaml"):
            if copy.name not in kept:
                copy.unlink(missing_ok=True)

    def _keep(self, file: str) -> None:
        """Keep a copy; best effort, because a full disk must not keep a good change from applying."""
        copy = self._copy_of(file)
        fresh = copy.with_suffix(".new")
        try:
            self._last_good.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(file, fresh)
            fresh.replace(copy)  # whole or not at all: half of a file can be good YAML with half of the policy
        except OSError:
            for path in (fresh, copy):
                path.unlink(missing_ok=True)
