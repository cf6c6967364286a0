"""Read YAML into plain data and remember the line of every field, without trusting the text.

PyYAML's event stream is used rather than its loader, because the loader recurses as deep as the text nests and
expands aliases without limit: both are ways to take an agent down with one small file. Here depth, values and size
are bounded, and every failure is a :class:`DocumentError` with a line.

Values are read as the Kubernetes API server reads them: timestamps stay text, keys are always text, a key written
twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_BYTES: Final = 4 * 1024 * 1024
"""Of one file. An API object is at most 1.5 MB (etcd's request limit); a folder may hold many files."""
MAX_VALUES: Final = 400_000
"""Keys and values in one file, aliases counted as often as they are used: about 6,000 policies, or 2.5 MB of them."""
MAX_DEPTH: Final = 64
"""Nesting. A pod's deepest field is at about 14."""

_TAG = "tag:yaml.org,2002:"
_PATH_STEP = re.compile(r'\["((?:[^"\\]|\\.)*)"\]|\[(\d+)\]|\.?([^.\[\]]+)')
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentError(Exception):
    """The text is not YAML that can be used. ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(slots=True)
class Lines:
    """The line of a value and of everything below it."""

    line: int
    keys: dict[str, Lines] | None = None
    items: list[Lines] | None = None
    size: int = 1
    """How many values this one is, itself included."""

    def item(self, index: int) -> Lines:
        """Return the lines of one item of a list, or of the list itself where aliases hide the item."""
        return self.items[index] if self.items is not None and index < len(self.items) else self

    def of(self, path: str) -> int:
        """Return the line of a field such as ``spec.ingress[0].from``, or of the nearest field above it."""
        node = self
        for quoted, index, plain in _PATH_STEP.findall(path):
            if index:
                below = node.item(int(index[:9]))
            else:
                key = re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
                below = (node.keys or {}).get(key, node)
            if below is node:
                break
            node = below
        return node.line


def join(path: str, key: str | int) -> str:
    """Append a key or an index to a field path; keys that hold dots or brackets are quoted."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not key or re.search(r'[.\[\]"\\]', key):
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        return f'{path}["{escaped}"]'
    return f"{path}.{key}" if path else key


def read_documents_untrusted(text: str) -> Iterator[tuple[Any, Lines]]:
    """Yield each document of ``text`` with its lines; empty documents are left out.

    Raises :class:`DocumentError` at the first thing that cannot be read; documents before it have been yielded.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(1, f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB")
    builder = _Builder()
    try:
        loader = _LOADER(text)
        try:
            while loader.check_event():
                finished = builder.feed(loader.get_event())
                if finished is not None and finished[0] is not None:
                    yield finished
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        text_of = " ".join(part for part in (error.problem, error.context) if part)
        raise DocumentError(mark.line + 1 if mark else 1, f"not YAML: {text_of}") from error
    except yaml.YAMLError as error:
        raise DocumentError(1, f"not YAML: {str(error).splitlines()[0]}") from error


@dataclass(slots=True)
class _Frame:
    """A mapping or a list that is being filled."""

    value: Any
    lines: Lines
    anchor: str | None
    key: str | None = None
    key_line: int = 0
    merges: list[dict[str, Any]] = field(default_factory=list)


class _Builder:
    """Turns events into data with a stack of its own."""

    __slots__ = ("anchors", "count", "resolver", "stack")

    def __init__(self) -> None:
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, Lines] | None] = {}
        self.count = 0
        self.resolver: Any = yaml.resolver.Resolver()

    def feed(self, event: Any) -> tuple[Any, Lines] | None:
        """Take one event; return the document when this event completed it."""
        line = event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self.anchors = {}
            case yaml.MappingStartEvent():
                self._open({}, line, event)
            case yaml.SequenceStartEvent():
                self._open([], line, event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                return self._close()
            case yaml.ScalarEvent():
                return self._scalar(event, line)
            case yaml.AliasEvent():
                target = self.anchors.get(str(event.anchor))
                if target is None:
                    raise DocumentError(line, f"alias *{event.anchor} refers to itself or to nothing")
                self._add(line, target[1].size)
                return self._place(target[0], target[1], line)
        return None

    def _add(self, line: int, values: int) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise DocumentError(line, f"the file holds more than {MAX_VALUES:,} values, aliases counted in full")

    def _open(self, value: Any, line: int, event: Any) -> None:
        if event.tag not in (None, "!", _TAG + "map", _TAG + "seq"):
            raise DocumentError(line, f"tag {event.tag} is not supported")
        if len(self.stack) >= MAX_DEPTH:
            raise DocumentError(line, f"values are nested more than {MAX_DEPTH} deep")
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            raise DocumentError(line, "a key must be plain text")
        self._add(line, 1)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        lines = Lines(line, keys={}) if isinstance(value, dict) else Lines(line, items=[])
        self.stack.append(_Frame(value, lines, event.anchor))

    def _close(self) -> tuple[Any, Lines] | None:
        frame = self.stack.pop()
        for merged in frame.merges:
            for key, value in merged.items():
                frame.value.setdefault(key, value)
        children = (*(frame.lines.keys or {}).values(), *(frame.lines.items or ()))
        frame.lines.size += sum(child.size for child in children)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (frame.value, frame.lines)
        return self._place(frame.value, frame.lines, frame.lines.line)

    def _scalar(self, event: Any, line: int) -> tuple[Any, Lines] | None:
        self._add(line, 1)
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            self._key(event, line)
            return None
        value = self._value(event, line)
        lines = Lines(line)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, lines)
        return self._place(value, lines, line)

    def _key(self, event: Any, line: int) -> None:
        frame = self.stack[-1]
        merge = event.implicit[0] and event.value == "<<"
        if not merge and event.value in frame.value:
            raise DocumentError(line, f"key {event.value!r} is written twice in one mapping")
        frame.key = event.value
        frame.key_line = line

    def _place(self, value: Any, lines: Lines, line: int) -> tuple[Any, Lines] | None:
        """Put a finished value where it belongs; a value that belongs nowhere is the document."""
        if not self.stack:
            return value, lines
        frame = self.stack[-1]
        if frame.lines.items is not None:
            frame.value.append(value)
            frame.lines.items.append(lines)
            return None
        if frame.key is None:
            raise DocumentError(line, "a key must be plain text")
        if frame.key == "<<":
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise DocumentError(line, "'<<' can only merge mappings")
            frame.merges.extend(sources)
            frame.lines.size += lines.size
        elif frame.lines.keys is not None:
            frame.value[frame.key] = value
            # The key's line is what people look for; the value may start one line below it.
            frame.lines.keys[frame.key] = Lines(frame.key_line, lines.keys, lines.items, lines.size)
        frame.key = None
        return None

    def _value(self, event: Any, line: int) -> Any:
        if event.tag is None and not event.implicit[0]:
            return event.value
        tag = event.tag or self.resolver.resolve(yaml.ScalarNode, event.value, (True, False))
        if tag in (_TAG + "str", _TAG + "timestamp", _TAG + "merge", _TAG + "value", "!"):
            return event.value
        if tag == _TAG + "null":
            return None
        kinds = {_TAG + "int": "int", _TAG + "bool": "bool", _TAG + "float": "float"}
        if tag not in kinds:
            raise DocumentError(line, f"tag {tag} is not supported")
        try:
            constructor = yaml.constructor.SafeConstructor()
            return constructor.construct_object(yaml.ScalarNode(tag, event.value))
        except (ValueError, OverflowError, KeyError, yaml.YAMLError) as error:
            raise DocumentError(line, f"{event.value[:40]!r} is not a valid {kinds[tag]}") from error
