import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def read_version() -> str:
    text = (HERE / 'mmgcvit' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)[1]


def read_description() -> str:
    readme = HERE / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


# Both families install the same modules, so neither may be a hard dependency:
# pip would put one over the other. What mmseg imports without declaring it,
# and setuptools for pkg_resources, stand beside the first one.
EXTRAS = {
    # of hf:// and timm:// addresses and safetensors files
    'hub': ['huggingface_hub', 'safetensors'],
    'openmmlab': [
        'mmengine>=0.10.4,<1',
        'mmcv>=2.1,<2.2',
        'mmdet>=3.3,<4',
        'mmsegmentation>=1.2.2,<2',
        'mmpretrain>=1.2,<2',
        'ftfy',
        'regex',
        'setuptools<81',
    ],
    'onedl': [
        'onedl-mmengine>=0.10.12,<1',
        'onedl-mmcv>=2.3.6,<3',
        'onedl-mmdetection>=3.5.1,<4',
        'onedl-mmsegmentation>=1.4.2,<2',
        'onedl-mmpretrain>=1.3.6,<2',
    ],
}

setup(
    name='mmgcvit',
    version=read_version(),
    description='The GC ViT backbone for OpenMMLab detection, segmentation and classification',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='computer vision, object detection, semantic segmentation, vision transformer',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['mmgcvit', 'mmgcvit.*']),
    python_requires='>=3.10',
    install_requires=['torch>=2.1'],
    extras_require=EXTRAS,
    zip_safe=False,
)
