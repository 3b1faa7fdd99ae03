"""Files that pyproject.toml cannot declare: beside the package, and of the checkout within it."""

from pathlib import Path, PurePosixPath

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

# tools that work only in a checkout
CHECKOUT_ONLY = {
    'compare',
    'make_docs',
    'make_pictures',
    'make_site',
    'quickstart',
    'run_tests',
    'setup_env',
    'test_matrix',
}
# an import hook for mmcv's operators, see mmgcvit/mmcv_ops
HOOK = ('', [f'mmgcvit/mmcv_ops/site/_mmgcvit_mmcv_ops.{end}' for end in ('py', 'pth')])


class InstallInSitePackages(Distribution().get_command_class('install_data')):
    """Install data files in site-packages. Python reads .pth files at its top level."""

    def finalize_options(self) -> None:
        self.set_undefined_options('install', ('install_lib', 'install_dir'))
        super().finalize_options()


class BuildPackages(build_py):
    """Install the import hook in editable installations too, in which setuptools skips it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            # without the resources: a folder mmgcvit in site-packages would hide the checkout
            self.distribution.data_files = [HOOK]
            self.run_command('install_data')


def resources() -> list[tuple[str, list[str]]]:
    """Return the folders in ``mmgcvit/.mim`` with their files; see ``mmgcvit.installed.resources``.

    The wheels of OpenMMLab have this layout, which mim and mmengine read.
    """
    files = [Path('metafile.yml'), Path('model-index.yml')]
    files += sorted(path for folder in ('configs', 'tools') for path in Path(folder).rglob('*.*'))
    return [
        (str(PurePosixPath('mmgcvit/.mim', path.parent)), [path.as_posix()])
        for path in files
        if path.suffix in ('.py', '.sh', '.yml') and path.stem not in CHECKOUT_ONLY
    ]


setup(
    data_files=[HOOK, *resources()],
    cmdclass={'install_data': InstallInSitePackages, 'build_py': BuildPackages},
)
