"""Label selectors, compiled to the two questions that hashed labels can answer too."""

from __future__ import annotations

from dataclasses import dataclass

from policy.objects import LabelSelector, Operator
from trireme_py.model import Labels


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """A missing key satisfies NotIn and DoesNotExist, and only those (apimachinery, labels.Requirement)."""
        match self.operator:
            case Operator.IN:
                return any(labels.has_value(self.key, value) for value in self.values)
            case Operator.NOT_IN:
                return not any(labels.has_value(self.key, value) for value in self.values)
            case Operator.EXISTS:
                return labels.has_key(self.key)
            case Operator.DOES_NOT_EXIST:
                return not labels.has_key(self.key)

    def __str__(self) -> str:
        match self.operator:
            case Operator.IN if len(self.values) == 1:
                return f"{self.key}={self.values[0]}"
            case Operator.IN:
                return f"{self.key} in ({', '.join(self.values)})"
            case Operator.NOT_IN if len(self.values) == 1:
                return f"{self.key}!={self.values[0]}"
            case Operator.NOT_IN:
                return f"{self.key} not in ({', '.join(self.values)})"
            case Operator.EXISTS:
                return f"{self.key} present"
            case Operator.DOES_NOT_EXIST:
                return f"{self.key} absent"


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements must hold; none at all matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    def lacking(self, labels: Labels) -> tuple[Requirement, ...]:
        """Return what ``labels`` do not satisfy."""
        return tuple(requirement for requirement in self.requirements if not requirement.matches(labels))

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements)) or "everything"


def compile_selector(selector: LabelSelector) -> Selector:
    """Put a selector into normal form: two selectors that were written differently but say the same are equal."""
    found = {Requirement(key, Operator.IN, (value,)) for key, value in selector.match_labels.items()}
    for item in selector.match_expressions:
        found.add(Requirement(item.key, item.operator, tuple(sorted(set(item.values)))))
    return Selector(tuple(sorted(found, key=lambda each: (each.key, each.operator.value, each.values))))
