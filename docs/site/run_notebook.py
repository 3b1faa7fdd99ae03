"""Runs a notebook and stores its outputs in it, without the paths of this machine.

    python docs/site/run_notebook.py docs/notebooks/detector.ipynb mmgcvit-0.2.0-py3-none-any.whl

The second argument is what the notebook installs, together with PyTorch and OpenMMLab: use an
environment of its own, with the packages of requirements/docs.txt. The cells run in a temporary
folder, and the time of each is printed.
"""

import os
import re
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert.filters import strip_ansi

PACKAGE = re.compile(r"(?<=^MMGCVIT = )'.*?'")


def run(notebook: nbformat.NotebookNode, package: Path, folder: Path) -> None:
    """Execute a notebook in a folder. A cell that fails raises nbclient's CellExecutionError."""
    first = next(cell for cell in notebook.cells if cell.cell_type == 'code')
    source = first.source
    first.source = PACKAGE.sub(repr(str(package)), source)
    # commands such as pip and mmgcvit are those of this environment
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    NotebookClient(
        notebook,
        timeout=3600,
        coalesce_streams=True,  # pieces of lines would hide paths
        resources={'metadata': {'path': str(folder)}},
    ).execute(env=os.environ | {'PATH': path})
    first.source = source


def seconds(cell: nbformat.NotebookNode) -> float:
    """Return how long a cell ran."""
    times = cell.metadata.execution
    start, end = (
        datetime.fromisoformat(times[f'iopub.{name}'].replace('Z', '+00:00'))
        for name in ('execute_input', 'status.idle')
    )
    return (end - start).total_seconds()


def shorten(outputs: list[nbformat.NotebookNode], paths: dict[str, str]) -> None:
    """Replace paths in printed text, and remove its colors."""
    for output in outputs:
        if 'text' in output:
            output.text = strip_ansi(output.text)
            for path, replacement in paths.items():
                output.text = output.text.replace(path, replacement)


def main() -> None:
    file, package = (Path(argument).resolve() for argument in sys.argv[1:])
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, package, Path(folder))
        paths = {f'{folder}/': '', f'{sys.prefix}/': '.venv/'}
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            print(f'{seconds(cell):6.1f} s  {cell.source.splitlines()[-1]}')
            del cell.metadata['execution']
            shorten(cell.outputs, paths)
    nbformat.write(notebook, file)


if __name__ == '__main__':
    main()
