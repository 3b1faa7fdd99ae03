"""Check the environment: installed packages, mmcv's operators on each device, and conflicts.

python tools/check_env.py

The exit code is 1 if there are problems. Please include the output in bug reports.
"""

import argparse
import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# mmgcvit may not be installed, and cannot be imported if mmengine is broken
CHECKOUT = Path(__file__).parents[1]
sys.path += [str(CHECKOUT), str(CHECKOUT / 'mmgcvit' / 'mmcv_ops' / 'site')]

STACKS = {
    'openmmlab': ('mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'mmpretrain'),
    'onedl': (
        'onedl-mmengine',
        'onedl-mmcv',
        'onedl-mmdetection',
        'onedl-mmsegmentation',
        'onedl-mmpretrain',
    ),
}
# modules to import, in this order, with the distributions that provide them
MODULES = {
    'torch': ['torch'],
    'torchvision': ['torchvision'],
    'numpy': ['numpy'],
    'cv2': ['opencv-python', 'opencv-python-headless'],
    'mmengine': ['mmengine', 'onedl-mmengine'],
    'mmgcvit': ['mmgcvit'],
    'mmcv': ['mmcv', 'mmcv-lite', 'onedl-mmcv'],
    'mmdet': ['mmdet', 'onedl-mmdetection'],
    'mmseg': ['mmsegmentation', 'onedl-mmsegmentation'],
    'mmpretrain': ['mmpretrain', 'onedl-mmpretrain'],
}
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')  # at least one; checked by importing their .apis
MISSING = 'not installed'
# parts of import error messages, and their remedies
REMEDIES = {
    'libGL': (
        'this machine has no graphics libraries: pip uninstall opencv-python, then pip install '
        'opencv-python-headless (pip check will report that the former is missing)'
    ),
    'pkg_resources': "pip install 'setuptools<81'",
    'torchvision::nms': 'install matching versions of torch and torchvision together',
    'ftfy': 'pip install ftfy regex',
    'MMCV==': "pip install --no-deps 'mmcv-lite>=2.1,<2.2'",
    'NoneType takes no arguments': "mmpretrain needs pip install 'transformers<5'",
}


class Report:
    """Results of the checks.

    Attributes:
        rows: Names and values to print.
        problems: Problems with their remedies.
        notes: Remarks that are not problems.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.notes: list[str] = []

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        lines = [f'{name:{width}}  {value}' for name, value in self.rows]
        lines += [f'note: {note}' for note in self.notes]
        lines += [f'{number}. {text}' for number, text in enumerate(self.problems, 1)]
        return '\n'.join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    report = check_environment()
    print(report)
    if report.problems:
        print('error: problems found, see the numbered lines above', file=sys.stderr)
        return 1
    print('no problems found')
    return 0


def check_environment() -> Report:
    """Run all checks. If an import fails, the other checks still run."""
    import _mmgcvit_mmcv_ops

    _mmgcvit_mmcv_ops.enable()
    report = Report()
    report.rows.append(('Python', f'{platform.python_version()} on {platform.platform()}'))
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        report.problems.append(
            f'Python {platform.python_version()} has not been tested: use 3.10 to 3.13'
        )
    names = [*MODULES['cv2'], *(name for stack in STACKS.values() for name in stack)]
    report.problems += conflicts(versions_of(names))
    report.problems += mismatches(
        versions_of(['torch', 'torchvision', 'numpy', 'setuptools', 'mmpretrain', 'transformers'])
    )
    failed: list[str] = []
    missing: list[str] = []
    for module, distributions in MODULES.items():
        versions = versions_of(distributions)
        found = ' and '.join(v if n == module else f'{n} {v}' for n, v in versions.items())
        if module in LIBRARIES and 'mmcv' in failed:  # these libraries need mmcv
            failure = needs('mmcv') if versions else MISSING
        else:
            failure = import_failure(module)
        if failure is None:
            report.rows.append((module, found or 'imported from a checkout'))
            continue
        report.rows.append((module, f'{found}: cannot be imported' if found else MISSING))
        if failure == MISSING:
            missing.append(module)
        elif failure not in [needs(other) for other in failed]:
            report.problems.append(f'{module} cannot be imported: {failure}')
        failed.append(module)
    if not set(LIBRARIES) <= set(missing):  # one of them is enough
        missing = [module for module in missing if module not in LIBRARIES]
    if missing:
        from mmgcvit.installed import install_command

        report.problems.append(f'{MISSING}: {", ".join(missing)}: {install_command()}')
    if 'mmgcvit' not in failed:
        check_version(report)
    if not {'torch', 'mmgcvit', 'mmcv'} & set(failed):
        check_operators(report)
    return report


def check_version(report: Report) -> None:
    """Compare the version of this script with that of the package."""
    from mmgcvit.errors import UserError
    from mmgcvit.installed import require_own_version

    try:
        require_own_version(__file__)
    except UserError as error:
        report.problems.append(str(error))


def import_failure(module: str) -> str | None:
    """Import a module. Return the cause and the remedy if this fails, otherwise None."""
    try:
        if module == 'mmcv':
            from mmgcvit.errors import UserError
            from mmgcvit.mmcv_ops import require_operators

            try:
                require_operators()
            except UserError as error:
                return str(error) if versions_of(MODULES['mmcv']) else MISSING
        else:
            importlib.import_module(f'{module}.apis' if module in LIBRARIES else module)
    except Exception as error:
        text = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
        if isinstance(error, ModuleNotFoundError) and error.name in MODULES:
            return MISSING if error.name == module else needs(error.name)
        remedy = next((do for words, do in REMEDIES.items() if words in text), 'reinstall it')
        return f'{text}: {remedy}'
    return None


def needs(module: str) -> str:
    """Return the cause of a failure for a module whose dependency is missing."""
    return f'needs {module}'


def check_operators(report: Report) -> None:
    """Run mmcv's operators on each device in each dtype."""
    import torch

    from mmgcvit.errors import counted
    from mmgcvit.mmcv_ops import operator_failure, require_operators

    operators = require_operators()
    report.rows.append(("mmcv's operators", str(operators)))
    devices = [('cpu', f'CPU, {counted(torch.get_num_threads(), "thread")}')]
    if torch.cuda.is_available():
        devices += [
            (f'cuda:{number}', f'{torch.cuda.get_device_name(number)}, CUDA {torch.version.cuda}')
            for number in range(torch.cuda.device_count())
        ]
    elif torch.version.cuda:
        report.notes.append(f'torch was built for CUDA {torch.version.cuda} but finds no GPU')
    for device, name in devices:
        try:
            failures = {
                str(dtype).removeprefix('torch.'): operator_failure(device, dtype)
                for dtype in (torch.float32, torch.float16, torch.bfloat16)
            }
        except RuntimeError as error:
            report.problems.append(
                f'{device} does not work ({" ".join(str(error).split())[:300]}): check with '
                'nvidia-smi which processes use it'
            )
            continue
        runs = ', '.join(dtype for dtype, failure in failures.items() if failure is None)
        report.rows.append((f'on {device}', f'{name}: {runs or "no dtype works"}'))
        if failures['float32']:
            report.problems.append(
                f"mmcv's operators fail on {device} ({failures['float32']}): "
                + (
                    'replace mmcv with mmcv-lite (pip uninstall mmcv, then pip install '
                    "mmcv-lite==2.1.0), which uses torchvision's operators"
                    if operators.compiled
                    else 'install matching versions of torch and torchvision together'
                )
            )


def versions_of(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the installed distributions among ``names``."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def conflicts(versions: dict[str, str]) -> Iterator[str]:
    """Yield problems with distributions that overwrite each other's files."""
    installed = {stack: [n for n in names if n in versions] for stack, names in STACKS.items()}
    if all(installed.values()):
        from mmgcvit.installed import install_command

        both = ', '.join(name for names in installed.values() for name in names)
        yield (
            f'both stacks are installed and overwrite each other ({both}): create a new '
            f'environment, then {install_command()}'
        )
    opencv = [versions[name] for name in MODULES['cv2'] if name in versions]
    if len({*opencv}) > 1:  # of the same version, as onedl's dependencies install both, they agree
        yield (
            f'opencv-python {opencv[0]} and opencv-python-headless {opencv[1]} are both installed '
            'and overwrite each other: uninstall both, then install one of them'
        )
    if {'mmcv', 'mmcv-lite'} <= versions.keys():
        yield (
            f'mmcv {versions["mmcv"]} and mmcv-lite {versions["mmcv-lite"]} are both installed and '
            'overwrite each other: pip uninstall mmcv mmcv-lite, then install one of them (mmcv '
            "for compiled operators, with the extra 'openmmlab-compiled')"
        )


def mismatches(versions: dict[str, str]) -> Iterator[str]:
    """Yield problems with versions that are known to be incompatible."""
    if 'torch' not in versions:
        return
    numbers = {name: release(version) for name, version in versions.items()}
    torch = numbers['torch']
    matching = (0, torch[1] + 15)  # torchvision 0.16 matches torch 2.1
    if torch[0] == 2 and numbers.get('torchvision', matching) != matching:
        yield (
            f'torchvision {versions["torchvision"]} does not match torch {versions["torch"]}: '
            f"pip install 'torchvision==0.{matching[1]}.*', from the same source as torch"
        )
    if torch < (2, 1):
        yield f'torch {versions["torch"]} is too old: install 2.1 or newer'
    if torch < (2, 3) and numbers.get('numpy', (0, 0)) >= (2, 0):
        yield (
            f'torch {versions["torch"]} was built for NumPy 1, but NumPy {versions["numpy"]} is '
            "installed: pip install 'numpy<2' 'opencv-python<4.12'"
        )
    if 'mmpretrain' in versions and numbers.get('transformers', (0, 0)) >= (5, 0):
        yield (
            f'mmpretrain {versions["mmpretrain"]}, and mmdet and mmseg with it, cannot be imported '
            f"with transformers {versions['transformers']}: pip install 'transformers<5'"
        )
    if numbers.get('setuptools', (0, 0)) >= (82, 0) and versions_of(['mmengine']):
        yield (
            f'mmengine needs pkg_resources, which setuptools {versions["setuptools"]} does not '
            "have: pip install 'setuptools<81'"
        )


def release(version: str) -> tuple[int, int]:
    """Return the major and minor version of a version such as 2.14.1+cu130."""
    major, minor = version.split('+')[0].split('.')[:2]
    return int(major), int(''.join(c for c in minor if c.isdigit()) or 0)


if __name__ == '__main__':
    sys.exit(main())
