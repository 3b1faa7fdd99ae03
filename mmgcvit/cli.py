"""The command ``mmgcvit``, which runs the scripts in ``tools/``.

This module imports neither torch nor mmengine, so that the list of commands appears at once.
"""

import ast
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import ModuleType

from .errors import did_you_mean
from .installed import missing_library, resources
from .version import __version__

COMMANDS = {
    'train': 'train.py',
    'test': 'test.py',
    'rehearse': 'rehearse.py',
    'check-data': 'check_data.py',
    'check-env': 'check_env.py',
    'new-project': 'new_project.py',
    'demo': 'demo.py',
    'visualize': 'visualize.py',
    'plot-log': 'plot_log.py',
    'convert': 'convert_weights.py',
    'publish': 'publish_model.py',
    'export': 'export_onnx.py',
    'flops': 'get_flops.py',
    'benchmark': 'benchmark.py',
    'benchmark-backbones': 'benchmark_backbones.py',
    'gpu-report': 'gpu_report.py',
    'replay': 'replay.py',
    'draw-shapes': 'draw_shapes.py',
    'dist-train': 'dist_train.sh',
    'dist-test': 'dist_test.sh',
    'dist-rehearse': 'dist_rehearse.sh',
    'slurm-train': 'slurm_train.sh',
    'slurm-test': 'slurm_test.sh',
}
# The interpreter of the command, for the processes that it starts.
PYTHON = 'MMGCVIT_PYTHON'
SCRIPT = re.compile(r'(?:\b(?:python|bash) )?\btools/(\w+\.(?:py|sh))')


def main() -> None:
    """Run the command line ``mmgcvit COMMAND [arguments]``."""
    try:
        try:
            run_command()
        finally:
            print(end='', flush=True)
    except BrokenPipeError:  # of a reader such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if missing := missing_library(error):
            sys.exit(f'error: {missing}')
        raise


def run_command() -> None:
    """Run the command in ``sys.argv``."""
    tools = resources() / 'tools'
    scripts = {name: tools / file for name, file in COMMANDS.items()}
    command, *arguments = sys.argv[1:] or ['--help']
    if command in ('-h', '--help'):
        print(overview(scripts))
    elif command == '--version':
        print(f'mmgcvit {__version__}')
    elif command not in scripts:
        sys.exit(_error(f'unknown command {command!r}{did_you_mean(command, scripts)}', 2))
    else:
        os.environ[PYTHON] = sys.executable
        run = run_python if scripts[command].suffix == '.py' else run_bash
        run(command, scripts[command], arguments)


def overview(scripts: Mapping[str, Path]) -> str:
    """Return the text of ``mmgcvit --help``."""
    width = max(map(len, scripts))
    lines = [f'  {name:{width}}  {_summary(script)}' for name, script in scripts.items()]
    configs = resources() / 'configs'
    return '\n'.join(
        [
            'usage: mmgcvit COMMAND [arguments]',
            '       mmgcvit COMMAND --help',
            '       mmgcvit --version',
            '',
            *lines,
            '',
            f'CONFIG is the path of a config file, or a name in {configs}',
        ]
    )


def run_python(command: str, script: Path, arguments: Sequence[str]) -> None:
    """Run a Python script in this process, as ``python SCRIPT`` does, under another name."""
    code = compile(as_commands(script.read_text(encoding='utf-8')), script, 'exec')
    sys.argv = [f'mmgcvit {command}', *arguments]
    sys.path.insert(0, str(script.parent))
    # processes that multiprocessing spawns import the file of this module
    module = sys.modules['__main__'] = ModuleType('__main__')
    module.__file__ = str(script)
    exec(code, vars(module))


def run_bash(command: str, script: Path, arguments: Sequence[str]) -> None:
    """Replace this process by a shell script, or print the usage if there are no arguments."""
    if not arguments or {'-h', '--help'} & {*arguments}:
        print(as_commands(documentation(script)), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    try:
        os.execvp('bash', ['bash', str(script), *arguments])
    except FileNotFoundError:
        sys.exit(_error(f'{command} requires bash, which is not installed'))


def documentation(script: Path) -> str:
    """Return the docstring of a Python script, or the comment at the start of a shell script."""
    text = script.read_text(encoding='utf-8')
    if script.suffix == '.py':
        return ast.get_docstring(ast.parse(text)) or ''
    comment = takewhile(lambda line: line.startswith('#'), text.splitlines()[1:])
    return '\n'.join(line.removeprefix('#').removeprefix(' ') for line in comment)


def as_commands(text: str) -> str:
    """Replace the names of scripts by commands, such as "python tools/train.py" by "mmgcvit train".

    Only in processes that the command ``mmgcvit`` has started.
    """
    if PYTHON not in os.environ:
        return text
    commands = {file: f'mmgcvit {name}' for name, file in COMMANDS.items()}
    return SCRIPT.sub(lambda match: commands.get(match[1], match[0]), text)


def _summary(script: Path) -> str:
    return re.split('[:.\n]', documentation(script), maxsplit=1)[0]


def _error(message: str, code: int = 1) -> int:
    sys.stderr.write(f'error: {message}: run mmgcvit --help\n')
    return code
