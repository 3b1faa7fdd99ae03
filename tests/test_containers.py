"""docker/: both recipes build the same image, from files that are sent to the build.

There is no container engine in CI: these tests read the recipes. Building them is left to people.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / 'docker' / 'Dockerfile'
APPTAINER = ROOT / 'docker' / 'mmgcvit.def'
PAGE = ROOT / 'docs' / 'gpu_nodes.md'


def instructions():
    """Return the instructions of the Dockerfile with their arguments, in their order."""
    text = re.sub('^#.*\n', '', DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r' *\\\n *', ' ', text).splitlines()
    return [tuple(line.split(' ', 1)) for line in lines if line]


def arguments(instruction):
    return [rest for name, rest in instructions() if name == instruction]


def commands():
    return [command.strip() for rest in arguments('RUN') for command in rest.split('&&')]


def sections():
    """Return the lines of each section of the Apptainer recipe, and its header as ''."""
    text = re.sub('^#.*\n', '', APPTAINER.read_text(), flags=re.MULTILINE)
    names = re.findall('^%(.+)$', text, re.MULTILINE)
    bodies = re.split('^%.+$', text, flags=re.MULTILINE)
    return {
        name: [line.strip() for line in body.splitlines() if line.strip()]
        for name, body in zip(['', *names], bodies, strict=True)
    }


def sent_by_docker():
    """Return a function that applies .dockerignore to the path of a file.

    As in Docker, the last pattern that matches a path or one of its folders decides.
    """
    lines = (ROOT / '.dockerignore').read_text().splitlines()
    rules = []
    for line in lines:
        if line and not line.startswith('#'):
            keep, pattern = line.startswith('!'), re.escape(line.removeprefix('!'))
            pattern = pattern.replace(r'\*\*/', '(?:.*/)?').replace(r'\*', '[^/]*')
            rules.append((re.compile(f'(?:{pattern})(?:/.*)?'), keep))

    def sent(path):
        return [True, *(keep for rule, keep in rules if rule.fullmatch(path))][-1]

    return sent


def listed_for_docker():
    """Return the files and folders at the top of the checkout that .dockerignore lets through."""
    lines = (ROOT / '.dockerignore').read_text().splitlines()
    return {line[1:] for line in lines if line.startswith('!') and '/' not in line}


def test_copied_files_exist_and_are_sent():
    sent = sent_by_docker()
    copied = [path for rest in arguments('COPY') for path in rest.split()[:-1]]
    assert copied == ['requirements/openmmlab.txt', 'requirements/dev.txt', '.']
    for path in [*copied[:-1], *listed_for_docker()]:
        assert (ROOT / path).exists() and sent(path), path


def test_all_files_of_the_sent_folders_are_sent():
    found = subprocess.run(
        ['git', 'ls-files', *sorted(listed_for_docker())], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip('the files are not in a git repository')
    sent = sent_by_docker()
    files = found.stdout.split()
    # the import hook of mmcv's operators has the ending of weights
    assert 'mmgcvit/mmcv_ops/site/_mmgcvit_mmcv_ops.pth' in files
    assert [path for path in files if not sent(path)] == []


@pytest.mark.parametrize(
    'path',
    [
        'data/coco/annotations/instances_train2017.json',
        'work_dirs/cascade_gcvit_s/epoch_36.pth',
        'work_dirs/cascade_gcvit_s/vis_data/config.py',
        '.git/config',
        '.venv/bin/python',
        'build/lib/mmgcvit/cli.py',
        'mmgcvit.egg-info/PKG-INFO',
        'gcvit_1k_tiny.pth.tar',
        'notes.txt',
        'mmgcvit/weights.pth',
        'configs/detection/epoch_1.pth',
        'tests/data/gcvit_1k_tiny.pth.tar',
        'tests/data/model.safetensors',
        'tools/model.onnx',
        'mmgcvit/__pycache__/cli.cpython-311.pyc',
        'mmgcvit/ops/__pycache__/windows.cpython-311.pyc',
    ],
)
def test_data_weights_and_environments_are_not_sent(path):
    assert not sent_by_docker()(path)


def test_both_recipes_start_from_the_same_supported_python():
    (image,) = arguments('FROM')
    assert sections()[''] == ['Bootstrap: docker', f'From: {image}']
    python = re.fullmatch(r'python:(3\.\d+)-slim-\w+', image)[1]
    assert f'Programming Language :: Python :: {python}"' in (ROOT / 'pyproject.toml').read_text()


def test_both_recipes_copy_the_same_files_and_run_the_same_commands():
    assert sections()['files'] == [f'{name} /mmgcvit/' for name in sorted(listed_for_docker())]
    own_home = ['mkdir --mode 1777 /home/mmgcvit']
    docker, apptainer = commands(), sections()['post']
    assert [command for command in docker if command not in own_home] == [
        command for command in apptainer if command != 'cd /mmgcvit'
    ]
    # HOME: Apptainer uses the home of the user
    (variables,) = (rest.split() for rest in arguments('ENV'))
    exported, removed = sections()['environment']
    assert variables == ['HOME=/home/mmgcvit', *exported.split()[1:]]
    assert removed == 'export PYTHONHOME= PYTHONPATH='


def test_packages_are_those_of_setup_env():
    """The recipes contain no version numbers, and nothing is compiled."""
    script = (ROOT / 'tools' / 'setup_env.sh').read_text().replace('"', '')
    script = re.sub(r' *\\\n *', ' ', script).replace('--build-constraint $requirements ', '')
    script = script.replace('$requirements', 'requirements/openmmlab.txt')
    script = re.sub(r'\$checkout\b/?', '', script)
    calls = [
        c.removeprefix('pip install --no-cache-dir ') for c in commands() if 'pip install' in c
    ]
    assert len(calls) == 3
    for call in calls:
        assert f'pip_install {call.removesuffix(" .")}' in script
    for recipe in (DOCKERFILE, APPTAINER):
        assert '==' not in recipe.read_text()
    (apt,) = (shlex.split(command) for command in commands() if 'apt-get install' in command)
    packages = [word for word in apt[2:] if not word.startswith('--')]
    assert packages == ['ibverbs-providers', 'libibverbs1']
    compilers = 'gcc|g\\+\\+|clang|build-essential|cuda|nvcc|.*-dev'
    assert not [name for name in packages if re.fullmatch(compilers, name)]


def test_a_change_of_the_code_installs_no_packages_again():
    names = [(name, rest) for name, rest in instructions() if name in ('COPY', 'RUN')]
    code = names.index(('COPY', '. .'))
    assert [rest for name, rest in names[:code] if name == 'COPY'] == [
        'requirements/openmmlab.txt requirements/dev.txt requirements/'
    ]
    assert 'torchvision' in names[code - 1][1]
    assert not [rest for _, rest in names[code:] if 'apt-get' in rest or ' -r ' in rest]


def test_commands_of_the_page_fit_the_image():
    page = PAGE.read_text()
    (*_, folder) = arguments('WORKDIR')
    (variables,) = (dict(pair.split('=') for pair in rest.split()) for rest in arguments('ENV'))
    assert f'-v "$PWD:{folder}"' in page
    assert f':{variables["HOME"]}/.cache"' in page
    for recipe in (DOCKERFILE, APPTAINER):
        (build,) = re.findall(r'^#   (\w+ build .+)$', recipe.read_text(), re.MULTILINE)
        assert f'\n{build}\n' in page


def test_driver_of_the_page_is_that_of_the_pinned_torch():
    pinned = (ROOT / 'requirements' / 'openmmlab.txt').read_text()
    page = ' '.join(PAGE.read_text().split())
    stated, cuda = re.search(r'torch (\S+), is built for CUDA (\d+\.\d+),', page).groups()
    assert f'\ntorch=={stated}\n' in pinned
    if torch.__version__.split('+')[0] != stated or not torch.version.cuda:
        pytest.skip(f'torch {torch.__version__} is not the build for CUDA that the page describes')
    assert cuda == torch.version.cuda, 'also look up the oldest driver for this version of CUDA'


def test_batch_script_of_the_page_starts_one_launcher_per_node(tmp_path):
    """With stand-ins for Slurm's commands and for Apptainer."""
    (script,) = re.findall(r'```bash\n(#!.*?)```', PAGE.read_text(), re.DOTALL)
    stand_ins = {
        'scontrol': '[[ "$*" == "show hostnames a[1-2]" ]] && printf "a1\\na2\\n"',
        'srun': 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "${@:3}"; done; echo "$1 $2"',
        'apptainer': 'echo "$NODE_RANK of $NNODES, $MASTER_ADDR:$PORT, $*"',
    }
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{body}\n')
        (tmp_path / name).chmod(0o755)
    slurm = {'SLURM_NNODES': '2', 'SLURM_JOB_NODELIST': 'a[1-2]', 'SLURM_CPUS_PER_TASK': '64'}
    path = os.pathsep.join([str(tmp_path), os.environ['PATH']])
    done = subprocess.run(
        ['bash', '-euc', script],
        env={**slurm, 'PATH': path},
        capture_output=True,
        text=True,
    )
    command = (
        'exec --nv --bind /data mmgcvit.sif bash tools/dist_train.sh '
        'configs/detection/cascade_gcvit_s.py 8'
    )
    assert done.stdout.splitlines() == [
        *(f'{node} of 2, a1:29500, {command}' for node in (0, 1)),
        '--kill-on-bad-exit=1 --cpus-per-task=64',
    ], done.stderr
