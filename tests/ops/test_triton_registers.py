"""Registers of the Triton kernels, compiled for GPUs ahead of time. This needs no GPU."""

import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip('triton')
version = tuple(map(int, triton.__version__.split('.')[:2]))
BIN = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
pytestmark = [
    pytest.mark.nightly,  # about 2 minutes on an idle machine
    pytest.mark.skipif(version < (3, 3), reason='needs Triton 3.3 or later'),
    pytest.mark.skipif(not (BIN / 'ptxas').exists(), reason='needs the ptxas of Triton'),
    pytest.mark.skipif(
        os.environ.get('TRITON_INTERPRET') == '1', reason="Triton's interpreter does not compile"
    ),
]

KERNELS = ('_forward_kernel', '_query_kernel', '_key_value_kernel', '_bias_kernel', '_table_kernel')
INTEGERS = ('n', 'num_heads', 'windows_per_query', 'num_windows', 'num_parts')
STRIDES = ('q_stride', 'kv_stride')  # multiples of 16 in all published networks
FLOAT32 = ('table', 'lse', 'delta', 'grad_bias', 'grad_table')


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    return importlib.import_module('mmgcvit.ops.triton_attention')


def compile_kernel(kernels, name, dtype, head_dim, precision, capability):
    """Compile a kernel for windows of 24×24 tokens as a launch does; return its PTX."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    config = {
        **kernels.CONFIGS[4 if dtype == 'fp32' else 2],
        **{'WINDOW': 24, 'HEAD_DIM': head_dim, 'PRECISION': precision},
    }
    options = {key: config.pop(key) for key in ('num_warps', 'num_stages')}
    if name == '_table_kernel':
        config, options = {'WINDOW': 24, 'BLOCK': 32}, {}
    signature, constants, attributes = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in config:
            signature[argument], constants[(i,)] = 'constexpr', config[argument]
        elif argument in INTEGERS:
            signature[argument] = 'i32'
        else:
            kind = '*fp32' if argument in FLOAT32 else f'*{dtype}'
            signature[argument] = 'i32' if argument in STRIDES else kind
            attributes[(i,)] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget('cuda', capability, 32)
    return triton.compile(source, target=target, options=options).asm['ptx']


def registers_and_spills(ptx, folder):
    """Return the registers of a thread, and the bytes that it stores and loads for want of them."""
    (architecture,) = re.findall(r'^\.target (\w+)', ptx, re.MULTILINE)
    ptxas = BIN / 'ptxas-blackwell'
    if int(re.sub(r'\D', '', architecture)) < 100 or not ptxas.exists():
        ptxas = BIN / 'ptxas'
    (folder / 'kernel.ptx').write_text(ptx)
    done = subprocess.run(
        [ptxas, '-v', f'--gpu-name={architecture}', 'kernel.ptx', '-o', 'kernel.cubin'],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (registers,) = re.findall(r'Used (\d+) registers', done.stdout)
    ((stores, loads),) = re.findall(
        r'(\d+) bytes spill stores, (\d+) bytes spill loads', done.stdout
    )
    return int(registers), int(stores), int(loads)


# Bytes of spills, stores and loads together, where there are any. Triton 3.8 has up to 28 and 972.
SPILLS = {
    ('fp32', 32, 'tf32x3', '_key_value_kernel'): 32,
    ('fp32', 64, 'tf32x3', '_bias_kernel'): 1024,
}


@pytest.mark.parametrize('capability', [80, 90, 100])
@pytest.mark.parametrize(
    ('dtype', 'head_dim', 'precision'),
    [
        ('bf16', 32, 'tf32x3'),  # all published networks
        ('fp16', 32, 'tf32x3'),
        ('fp32', 32, 'tf32x3'),
        ('fp32', 32, 'tf32'),
        ('bf16', 16, 'tf32x3'),
        ('bf16', 64, 'tf32x3'),
        ('fp32', 64, 'tf32x3'),
    ],
)
def test_kernels_fit_into_registers(kernels, dtype, head_dim, precision, capability, tmp_path):
    """Tiles that are too large show as spills, which are slow. ``-s`` prints the table."""
    for name in KERNELS:
        ptx = compile_kernel(kernels, name, dtype, head_dim, precision, capability)
        registers, stores, loads = registers_and_spills(ptx, tmp_path)
        print(
            f'sm_{capability}, {dtype} ({precision}), {head_dim} channels, {name.strip("_")}: '
            f'{registers} registers, spills of {stores} B stores and {loads} B loads'
        )
        assert registers <= 255
        limit = SPILLS.get((dtype, head_dim, precision, name), 0)
        assert stores + loads <= limit, f'{name} of {dtype} on sm_{capability}'
