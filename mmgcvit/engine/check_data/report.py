"""The results of a check."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MANY = 200  # classes; of more, only the rarest are listed
RAREST = 20


@dataclass(frozen=True)
class Problem:
    """A fault that the user should fix.

    Attributes:
        text: What was found, where, and the remedy, in one line.
        stops: Whether training would fail or learn nonsense.
        name: Name of the check, for ``skip_checks`` of a config.
        splits: Names of the splits that use the dataset; empty for problems of the config.
    """

    text: str
    stops: bool = True
    name: str = ''
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """Information that is not a fault, for example what was not checked."""

    text: str


# A check is given a dataset or a config. A table maps each check to the checks that have to succeed
# first.
Check = Callable[[Any], Iterator[Problem | Note]]
Checks = Mapping[Check, Sequence[Check]]


class Unchecked(Exception):
    """Ends a check that cannot be run; the reason becomes a note."""


@dataclass
class Counts:
    """What training or evaluation uses of a dataset.

    Attributes:
        images: Number of images after the dataset's filter, or None if unknown.
        annotated: Number of images with an instance or pixel of a class, or None if unknown. Of
            label maps, only the opened ones are counted.
        unit: 'instances', 'segments' or 'pixels'.
        classes: Number of instances, segments or pixels by class, empty if unknown.
    """

    images: int | None = None
    annotated: int | None = None
    unit: str = 'instances'
    classes: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """The result of :func:`~mmgcvit.engine.check_data.check_data`.

    Attributes:
        datasets: Names of the splits and counts of each dataset. Equal datasets appear once, for
            example as 'val, test'.
        problems: All problems.
        notes: Further information.
    """

    datasets: list[tuple[str, Counts]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, found: Sequence[Problem | Note]) -> None:
        """Add the results of checks."""
        self.problems += [each for each in found if isinstance(each, Problem)]
        self.notes += [each.text for each in found if isinstance(each, Note)]

    def text(self) -> str:
        """Return the table of counts, then notes and problems, each on a line."""
        lines = [self.table(), *(f'note: {note}' for note in self.notes)]
        lines += [f'{number}. {each.text}' for number, each in enumerate(self.problems, 1)]
        return '\n'.join(lines if self.problems else [*lines, 'no problems found'])

    def table(self) -> str:
        """Format the counts: one line per dataset, then one line per class."""
        lines = [f'{"split":<16}{"images":>10}{"annotated":>12}{"all classes":>16}']
        for name, counts in self.datasets:
            total = f'{sum(counts.classes.values())} {counts.unit}' if counts.classes else '-'
            images, annotated = (
                '-' if number is None else number for number in (counts.images, counts.annotated)
            )
            lines.append(f'{name:<16}{images:>10}{annotated:>12}  {total:>20}'.rstrip())
        counted = [(name, counts.classes) for name, counts in self.datasets if counts.classes]
        if counted:
            lines += ['', f'{"class":<24}' + ''.join(f'{name:>14}' for name, _ in counted)]
            labels = list(dict.fromkeys(label for _, classes in counted for label in classes))
            shown = labels if len(labels) <= MANY else _rarest(labels, counted[0][1])
            for label in shown:
                name = label if len(label) < 24 else f'{label[:22]}…'
                cells = ''.join(f'{classes.get(label, "-"):>14}' for _, classes in counted)
                lines.append(f'{name:<24}{cells}')
            if len(shown) < len(labels):
                lines.append(f'… and {len(labels) - len(shown)} more classes')
        return '\n'.join(lines)


def _rarest(labels: list[str], counts: Mapping[str, int]) -> list[str]:
    return sorted(labels, key=lambda label: counts.get(label, 0))[:RAREST]
