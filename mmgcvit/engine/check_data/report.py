"""What a check of a config's data found, and how it is printed."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """One thing to put right.

    Attributes:
        text: What was found and what to do, in one line.
        stops: Whether a training would fail of it or learn nonsense, not just lose something.
    """

    text: str
    stops: bool = True


@dataclass
class Findings:
    """What was found in one dataset, or in the config apart from its datasets.

    Attributes:
        images: Number of images, None where they were not counted.
        annotated: Images with an annotation that training uses; of a sample where ``unit`` is
            pixels. None where they were not counted.
        unit: What ``counts`` counts, 'instances' or 'pixels'.
        counts: Of every class, empty where they were not counted.
        classes: Names that the dataset says it has, None where it was not looked at.
        problems: To put right.
        notes: To know.
    """

    images: int | None = None
    annotated: int | None = None
    unit: str = 'instances'
    counts: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stop(self, text: str) -> None:
        """Add a problem that a training would fail of."""
        self.problems.append(Problem(text))

    def warn(self, text: str) -> None:
        """Add a problem that a training survives."""
        self.problems.append(Problem(text, stops=False))


@dataclass
class Report:
    """What was found in a config.

    Attributes:
        datasets: Name of the split and findings; equal datasets appear once, as 'val, test'.
        config: What was found when the model, the evaluators and the datasets were compared.
    """

    datasets: list[tuple[str, Findings]] = field(default_factory=list)
    config: Findings = field(default_factory=Findings)

    @property
    def problems(self) -> list[Problem]:
        """All problems, each with the split that it belongs to."""
        found = [
            Problem(f'{name}: {problem.text}', problem.stops)
            for name, findings in self.datasets
            for problem in findings.problems
        ]
        return found + self.config.problems

    @property
    def notes(self) -> list[str]:
        """All notes, each with the split that it belongs to."""
        found = [f'{name}: {note}' for name, findings in self.datasets for note in findings.notes]
        return found + self.config.notes

    def table(self) -> str:
        """Format the counts: one line a dataset, then one line a class."""
        lines = [f'{"split":<16}{"images":>10}{"annotated":>12}{"all classes":>16}']
        for name, found in self.datasets:
            total = f'{sum(found.counts.values())} {found.unit}' if found.counts else '-'
            cells = ('-' if n is None else str(n) for n in (found.images, found.annotated))
            images, annotated = cells
            lines.append(f'{name:<16}{images:>10}{annotated:>12}  {total:>20}'.rstrip())
        counted = [(name, found.counts) for name, found in self.datasets if found.counts]
        if counted:
            lines += ['', f'{"class":<24}' + ''.join(f'{name:>14}' for name, _ in counted)]
            names = dict.fromkeys(label for _, counts in counted for label in counts)
            for label in names:
                cells = ''.join(f'{counts.get(label, "-"):>14}' for _, counts in counted)
                lines.append(f'{label:<24}{cells}')
        return '\n'.join(lines)
