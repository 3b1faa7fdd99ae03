import re
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    text = (HERE / 'mmgcvit' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)[1]


def read_description() -> str:
    readme = HERE / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


class InstallInSitePackages(Distribution().get_command_class('install_data')):
    """Install data files at the top level of site-packages, where Python reads .pth files."""

    def finalize_options(self) -> None:
        self.set_undefined_options('install', ('install_lib', 'install_dir'))
        super().finalize_options()


class BuildPackages(build_py):
    """Also install the data files in editable installations, in which setuptools skips them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            self.run_command('install_data')


# Both stacks install the same modules, so neither can be a hard dependency: pip would overwrite one
# with the other. mmseg imports ftfy and regex without declaring them, and mmengine and mmcv import
# pkg_resources, which newer versions of setuptools lack.
OPENMMLAB = [
    'mmengine>=0.10.4,<1',
    'mmdet>=3.3,<4',
    'mmsegmentation>=1.2.2,<2',
    'mmpretrain>=1.2,<2',
    'torchvision>=0.16',
    'ftfy',
    'regex',
    'setuptools<81',
]
EXTRAS = {
    # for hf:// and timm:// URLs and safetensors files
    'hub': ['huggingface_hub', 'safetensors'],
    'openmmlab': [*OPENMMLAB, 'mmcv-lite>=2.1,<2.2'],
    # for an existing compiled mmcv, since mmcv-lite would overwrite its files
    'openmmlab-compiled': [*OPENMMLAB, 'mmcv>=2.0.0rc4,<2.2'],
    'onedl': [
        'onedl-mmengine>=0.10.12,<1',
        'onedl-mmcv>=2.3.6,<3',
        'onedl-mmdetection>=3.5.1,<4',
        'onedl-mmsegmentation>=1.4.2,<2',
        'onedl-mmpretrain>=1.3.6,<2',
        'torchvision>=0.16',
    ],
}

setup(
    name='mmgcvit',
    version=read_version(),
    description='The GC ViT backbone for OpenMMLab detection, segmentation and classification',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE'],
    keywords='computer vision, object detection, semantic segmentation, vision transformer',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['mmgcvit', 'mmgcvit.*']),
    # an import hook for mmcv's operators, see mmgcvit/mmcv_ops
    data_files=[('', [f'mmgcvit/mmcv_ops/site/_mmgcvit_mmcv_ops.{end}' for end in ('py', 'pth')])],
    cmdclass={'install_data': InstallInSitePackages, 'build_py': BuildPackages},
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'filelock'],
    extras_require=EXTRAS,
    zip_safe=False,
)
