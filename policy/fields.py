"""Reading fields out of plain data, collecting problems with their field paths instead of raising."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from policy import objects
from policy.document import join

T = TypeVar("T")

NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
"""DNS subdomain (RFC 1123): names of objects."""
LABEL_KEY: Final = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_MESSAGE = re.compile(r"(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing that is wrong in one object."""

    field: str
    """Such as ``spec.ingress[0].from[1].podSelector``."""
    message: str
    hint: str
    """What to write instead."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping inside an object, with the path that leads to it."""

    data: Mapping[str, Any]
    path: str
    problems: list[FieldProblem]

    def problem(self, field: str, message: str, hint: str) -> None:
        self.problems.append(FieldProblem(_under(self.path, field), message, hint))

    def known(self, *names: str) -> None:
        """Report every field that is not one of ``names``."""
        for key in self.data:
            if key not in names:
                self.problem(join("", key), "unknown field", did_you_mean(key, names))

    def section(self, name: str, *, required: bool = False) -> Fields:
        """Return the mapping called ``name``, or an empty one."""
        value = self.data.get(name)
        if value is None and required:
            self.problem(name, "is missing", f"add {name}:")
        elif value is not None and not isinstance(value, dict):
            self.problem(name, f"must be a mapping, not {_kind(value)}", "indent its fields below it")
        return Fields(value if isinstance(value, dict) else {}, _under(self.path, name), self.problems)

    def list_of(self, name: str) -> list[Any]:
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.problem(name, f"must be a list, not {_kind(value)}", "begin each item with '- '")
            # What was meant is a rule; an unreadable rule stands for it and allows nothing.
            return [value] if name in ("ingress", "egress") else []
        return value

    def text(self, name: str, default: str) -> str:
        value = self.data.get(name, default)
        if isinstance(value, str):
            return value
        self.problem(name, f"must be text, not {_kind(value)}", f'quote it: "{_plain(value)}"')
        return default

    def boolean(self, name: str) -> bool:
        value = self.data.get(name, False)
        if isinstance(value, bool):
            return value
        self.problem(name, f"must be true or false, not {_kind(value)}", "write true or false, without quotes")
        return False

    def object_name(self, name: str, default: str | None = None) -> str | None:
        value = self.data.get(name, default)
        if value is None:
            self.problem(name, "is missing", f"add {name}: to metadata")
        elif not isinstance(value, str):
            self.problem(name, f"must be text, not {_kind(value)}", f'quote it: "{_plain(value)}"')
        elif not NAME.fullmatch(value):
            self.problem(name, f"{value[:80]!r} is not a valid name", "use lower-case letters, digits, '-' and '.'")
        else:
            return value
        return None

    def strings(self, name: str) -> dict[str, str]:
        """Return a mapping of text to text; entries that are not text are reported and left out."""
        section = self.section(name)
        found: dict[str, str] = {}
        for key, value in section.data.items():
            if isinstance(value, str):
                found[key] = value
            else:
                section.problem(join("", key), f"must be text, not {_kind(value)}", f'quote it: "{_plain(value)}"')
        return found

    def labels(self, name: str) -> dict[str, str]:
        found = self.strings(name)
        for key, value in found.items():
            check_label(self, join(name, key), key, (value,))
        return found


def check_label(fields: Fields, field: str, key: str, values: tuple[str, ...]) -> None:
    """Report a label key or value that the API server would refuse."""
    prefix, _, _ = key.rpartition("/")
    if not LABEL_KEY.fullmatch(key) or len(prefix) > 253:
        fields.problem(field, f"{key[:80]!r} is not a label key", "use [prefix/]name, name of at most 63 letters, -_.")
    for value in values:
        if not LABEL_VALUE.fullmatch(value):
            hint = "use at most 63 letters, digits and -_. with a letter or digit at both ends"
            fields.problem(field, f"{value[:80]!r} is not a label value", hint)


def convert(fields: Fields, path: str, kind: type[T], default: Any) -> Any:
    """Convert what stands at ``path`` (a field, or ``field[index]``) to ``kind``; report and return ``default``."""
    name, _, index = path.partition("[")
    value = fields.data.get(name)
    if index:
        position = int(index.rstrip("]"))
        value = value[position] if isinstance(value, list) else value
    elif name not in fields.data:
        return default
    before = len(fields.problems)
    _check_match_labels(fields, path, value)
    if len(fields.problems) > before:
        return default
    try:
        return msgspec.convert(value, type=kind, strict=True)
    except msgspec.ValidationError as error:
        field, message, hint = _explain(str(error), value)
        fields.problem(_under(path, field), message, hint)
        return default


def without_nulls(value: Any) -> Any:
    """Leave out fields that are null: in the API a null field and an absent one are the same."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _check_match_labels(fields: Fields, path: str, value: Any) -> None:
    """Report matchLabels whose values YAML read as numbers or booleans; msgspec does not name their keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            below = _under(path, join("", key))
            if key == "matchLabels" and isinstance(item, dict):
                for label, text in item.items():
                    if not isinstance(text, str):
                        hint = f'quote it: "{_plain(text)}"'
                        fields.problem(join(below, label), f"must be text, not {_kind(text)}", hint)
            else:
                _check_match_labels(fields, below, item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_match_labels(fields, join(path, index), item)


_WORDS: Final = {
    "object": "a mapping",
    "array": "a list, with '- ' before each item",
    "str": "text, in quotes",
    "int": "a number, without quotes",
}


def _explain(text: str, value: Any) -> tuple[str, str, str]:
    """Turn msgspec's message into field, message and hint."""
    match = _MESSAGE.fullmatch(text)
    assert match is not None
    message, path = match["text"], (match["path"] or "").removeprefix(".")
    if unknown := _UNKNOWN.fullmatch(message):
        return _under(path, join("", unknown[1])), "unknown field", did_you_mean(unknown[1], _field_names())
    if missing := _MISSING.fullmatch(message):
        return _under(path, missing[1]), "is missing", f"add {missing[1]}:"
    if message.startswith("Invalid enum value"):
        operators, actions = "In, NotIn, Exists or DoesNotExist", "Accept, Deny or Pass"
        hint = f"write {operators if path.endswith('operator') else actions}"
        return path, message[0].lower() + message[1:].replace("enum ", ""), hint
    if "got `null`" in message or (value is None and not path):
        return path, "is empty", "write {} to mean everything, or remove it"
    wanted = message.partition("Expected `")[2].partition("`")[0]
    text = message[0].lower() + message[1:].replace("`", "")
    return path, text, f"write {_WORDS.get(wanted) or wanted.replace('|', 'or') or 'what the API reference names'}"


def _field_names() -> tuple[str, ...]:
    names: list[str] = []
    for kind in vars(objects).values():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            names.extend(kind.__struct_encode_fields__)
    return tuple(dict.fromkeys(names))


def did_you_mean(name: str, known: tuple[str, ...]) -> str:
    """Return a hint that names the nearest of ``known``."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "remove it, or correct its indentation"


def _under(path: str, field: str) -> str:
    if not path or not field:
        return path or field
    return f"{path}{field}" if field.startswith("[") else f"{path}.{field}"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {str(value)[:40]}"
    if isinstance(value, str):
        return "text"
    return "a mapping" if isinstance(value, dict) else "a list"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:40]
