"""Read a folder of ordinary Kubernetes YAML. What is wrong becomes a :class:`Problem`; nothing raises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from policy.decode import decode, intended_kind, is_ours
from policy.document import MAX_BYTES, DocumentError, Lines, join, read_documents_untrusted
from policy.objects import ClusterNetworkPolicy, Namespace, NetworkPolicy, Object, Pod

MAX_FILES: Final = 10_000
"""In one folder; more is surely the wrong folder."""
SUFFIXES: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something in a file that cannot be used, with what to do about it."""

    file: str
    line: int
    """From 1; 0 when it is the file itself."""
    field: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"
        return f"{text}; {self.hint}" if self.hint else text


@dataclass(frozen=True, slots=True)
class Document:
    """One document: of a kind that policy does not read itself, or the text behind an object."""

    file: str
    line: int
    kind: str
    api_version: str
    data: dict[str, Any]
    lines: Lines = field(repr=False, compare=False)

    def line_of(self, field_path: str) -> int:
        """Return the line of a field such as ``spec.rules[0].name``, or of the nearest field above it."""
        return self.lines.of(field_path)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a folder held."""

    objects: tuple[Object, ...] = ()
    problems: tuple[Problem, ...] = ()
    others: tuple[Document, ...] = ()
    sources: dict[str, Document] = field(default_factory=dict, repr=False)
    """From ``object.key`` to the document it was read from."""

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        return tuple(item for item in self.objects if isinstance(item, Namespace))

    @property
    def pods(self) -> tuple[Pod, ...]:
        return tuple(item for item in self.objects if isinstance(item, Pod))

    @property
    def policies(self) -> tuple[NetworkPolicy | ClusterNetworkPolicy, ...]:
        return tuple(item for item in self.objects if isinstance(item, NetworkPolicy | ClusterNetworkPolicy))


def load_folder(folder: Path, owners: Mapping[str, str] | None = None) -> Loaded:
    """Read every ``.yaml``, ``.yml`` and ``.json`` file below ``folder``, in the order of their names.

    Of two files with the same object the first one counts, or else the one that ``owners`` names, by ``object.key``.
    Names that begin with a dot are passed over: a mounted ConfigMap keeps its files a second time in such a folder.
    """
    if not folder.is_dir():
        if folder.is_file():
            return load_file(folder)
        return Loaded(problems=(Problem(str(folder), 0, "", "is not a folder", "name an existing file or folder"),))
    try:
        files = sorted(_files(folder))
    except OSError as error:
        return Loaded(problems=(_unreadable(folder, error),))
    if len(files) > MAX_FILES:
        text = f"holds {len(files)} files; only the first {MAX_FILES} are read"
        extra = [Problem(str(folder), 0, "", text, "name the folder that holds the policies")]
        return _load(files[:MAX_FILES], extra, owners)
    return _load(files, [], owners)


def load_file(file: Path) -> Loaded:
    """Read one file."""
    return _load([file], [])


def load_files(paths: Iterable[Path]) -> Loaded:
    """Read files and folders together, as one set."""
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        if path.is_dir():
            files.extend(sorted(_files(path)))
        elif path.is_file():
            files.append(path)
        else:
            problems.append(Problem(str(path), 0, "", "does not exist", "name an existing file or folder"))
    return _load(files, problems)


def load_text(text: str, file: str = "<text>") -> Loaded:
    """Read documents from text, with ``file`` as the name that problems give."""
    return _collect(_documents(text, file), [])


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        elif entry.suffix in SUFFIXES and entry.is_file():
            yield entry


def _load(files: list[Path], problems: list[Problem], owners: Mapping[str, str] | None = None) -> Loaded:
    def documents() -> Iterator[Document | Problem]:
        for file in files:
            try:
                with file.open("rb") as stream:
                    raw = stream.read(MAX_BYTES + 1)
            except OSError as error:
                yield _unreadable(file, error)
                continue
            if len(raw) > MAX_BYTES:
                yield Problem(str(file), 0, "", f"is larger than {MAX_BYTES // 1024 // 1024} MiB", "split the file")
                continue
            try:
                text = raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = raw.count(b"\n", 0, error.start) + 1
                yield Problem(str(file), line, "", "is not UTF-8 text", "save it as UTF-8")
                continue
            yield from _documents(text, str(file))

    return _collect(documents(), problems, owners)


def _unreadable(path: Path, error: OSError) -> Problem:
    return Problem(str(path), 0, "", f"cannot be read: {error.strerror or error}", "check its owner and mode")


def _documents(text: str, file: str) -> Iterator[Document | Problem]:
    """Yield each document, the items of lists one by one."""
    try:
        for data, lines in read_documents_untrusted(text):
            yield from _unfold(data, lines, file)
    except DocumentError as error:
        hint = "nothing after this line was read; correct it and check again"
        yield Problem(file, error.line, "", error.message, hint)


def _unfold(data: Any, lines: Lines, file: str) -> Iterator[Document | Problem]:
    if not isinstance(data, dict):
        yield Problem(file, lines.line, "", "the document is not a mapping", "begin with apiVersion: and kind:")
        return
    kind, version = data.get("kind"), data.get("apiVersion")
    items = data.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        for index, item in enumerate(items):
            below = (lines.keys or {}).get("items", lines).item(index)
            if isinstance(item, dict) and "kind" not in item and kind != "List":
                # Typed lists as the API returns them leave kind and version to the list.
                item = {"kind": kind.removesuffix("List"), "apiVersion": version, **item}  # noqa: PLW2901
            yield from _unfold(item, below, file)
        return
    if kind is None and "tests" in data:
        kind, version = "", ""  # expectations: policy.expectations
    if not isinstance(kind, str) or not isinstance(version, str):
        missing = "kind" if not isinstance(kind, str) else "apiVersion"
        yield Problem(file, lines.line, missing, "is missing or not text", f"begin the document with {missing}:")
        return
    yield Document(file, lines.line, kind, version, data, lines)


def _collect(
    documents: Iterator[Document | Problem], problems: list[Problem], owners: Mapping[str, str] | None = None
) -> Loaded:
    objects: dict[str, Object] = {}
    sources: dict[str, Document] = {}
    others: list[Document] = []
    for document in documents:
        if isinstance(document, Problem):
            problems.append(document)
            continue
        if not is_ours(document.kind):
            meant = intended_kind(document.kind, document.api_version)
            if meant is None:
                others.append(document)
            else:
                # Passed over in silence, what it denies would be open.
                text, line = f"{document.kind} is not a known kind", document.line_of("kind")
                problems.append(Problem(document.file, line, "kind", text, f"did you mean {meant}?"))
            continue
        item, found = decode(document.data)
        problems.extend(
            Problem(document.file, document.line_of(each.field), each.field, each.message, each.hint) for each in found
        )
        if item is None:
            continue
        if item.key in objects:
            first, second = sources[item.key], document
            if owners is not None and owners.get(item.key) == second.file != first.file:
                first, second = second, first
                objects[item.key], sources[item.key] = item, first
            text = f"{item.key} is there already ({first.file}:{first.line}); this one is left out"
            line = second.line_of("metadata.name")
            problems.append(Problem(second.file, line, "metadata.name", text, "rename or remove one of them"))
            continue
        objects[item.key] = item
        sources[item.key] = document
    return Loaded(tuple(objects.values()), tuple(problems), tuple(others), sources)


__all__ = ["Document", "Loaded", "Problem", "join", "load_file", "load_files", "load_folder", "load_text"]
