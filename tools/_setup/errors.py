"""Failures a user can act on, and how the output of a failed command becomes one."""

from __future__ import annotations

import errno
import os
import re

DISK_REMEDY = (
    'make room (about 10 GB in all), or put the environment and the cache on a larger disk '
    'with MMGCVIT_VENV=/large/venv MMGCVIT_CACHE=/large/cache PIP_CACHE_DIR=/large/pip'
)
INDEX_REMEDY = (
    'check the network, the proxy (HTTPS_PROXY) and the index (PIP_INDEX_URL, pip config list), '
    'then run the same command again: what is done stays done'
)
CPU_ONLY = 'MMGCVIT_CUDA_OPS=0 bash tools/setup_env.sh builds the CPU operators only'


class SetupError(Exception):
    """A step cannot go on.

    Args:
        what: What is wrong, one line.
        remedy: What the user can do about it.
        lines: The output lines that tell most.
    """

    def __init__(self, what: str, remedy: str, lines: tuple[str, ...] = ()):
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.lines = lines


# The first match wins: an index out of reach also gives "No matching
# distribution", and a full disk gives almost every other message.
_CAUSES = [
    (
        r'No space left on device|Disk quota exceeded|\[Errno (28|122)\]',
        'the disk is full',
        DISK_REMEDY,
    ),
    (
        r'Killed signal terminated program|fatal error: Killed|nvcc error.*died due to signal 9'
        r'|std::bad_alloc|MemoryError',
        'memory ran out',
        'run it again with fewer compile jobs: MAX_JOBS=1 bash tools/setup_env.sh',
    ),
    (
        r'unsupported GNU version|unsupported Microsoft|the current installed version of .* is '
        r'(greater|less) than',
        'nvcc refuses this C++ compiler',
        f'name one that it supports: CXX=g++-13 CC=gcc-13 bash tools/setup_env.sh; or {CPU_ONLY}',
    ),
    (
        r'NewConnectionError|Connection refused|name resolution|Name or service not known'
        r'|ConnectTimeout|[Rr]ead timed out|ReadTimeout|ProxyError|Tunnel connection failed'
        r'|SSLError|CERTIFICATE_VERIFY_FAILED|Max retries exceeded|Network is unreachable'
        r'|No route to host|Connection reset|Could not fetch URL|connection broken'
        r'|HTTP error (401|403|407|5\d\d)|Failed to connect',
        'the package index is out of reach',
        INDEX_REMEDY,
    ),
    (
        r'No matching distribution found|Could not find a version',
        'the package index does not offer a version this needs',
        'check the index (PIP_INDEX_URL, PIP_NO_INDEX, PIP_FIND_LINKS, pip config list): it has '
        'to offer the versions in requirements/',
    ),
    (
        r'Permission denied|Read-only file system|\[Errno (13|30)\]',
        'a folder cannot be written to',
        'see the lines above for which; MMGCVIT_VENV, MMGCVIT_CACHE and PIP_CACHE_DIR name others',
    ),
    (
        r'ninja: build stopped|fatal error: |error: command .* failed',
        'the compiler failed',
        f'see the log; another compiler: CXX=g++-13 CC=gcc-13. With CUDA operators: {CPU_ONLY}',
    ),
]

_TELLING = re.compile(r'error|fatal|FAILED|No space left|Killed|WARNING: Retrying|denied', re.I)
# Compile commands and pip's closing advice contain "error" and tell nothing.
_NOISE = re.compile(r'-Werror|-W(no-)?error|pip-tracking|This error originates|\[notice\]')
# What differs between pip's attempts at the same thing.
_PIP_OBJECTS = re.compile(r' \(Retry\([^)]*\)\)|<\S+ object at 0x\w+>: ')


def explain(output: list[str], returncode: int) -> SetupError:
    """The error behind a failed command.

    Args:
        output: The last lines it wrote.
        returncode: Its exit status, negative for a signal.
    """
    text = '\n'.join(output)
    lines = telling_lines(output)
    for pattern, what, remedy in _CAUSES:
        if re.search(pattern, text):
            if 'does not offer' in what and os.environ.get('PIP_NO_INDEX'):
                what, remedy = 'PIP_NO_INDEX keeps pip from the package index', 'unset PIP_NO_INDEX'
            return SetupError(what, remedy, lines)
    how = f'killed by signal {-returncode}' if returncode < 0 else f'exit status {returncode}'
    remedy = 'see the log; run the same command again, or delete the environment first'
    return SetupError(f'the command failed ({how})', remedy, lines)


def telling_lines(output: list[str], count: int = 12) -> tuple[str, ...]:
    """The last lines that mention an error, or the last lines where none does."""
    lines = list(dict.fromkeys(_PIP_OBJECTS.sub('', line) for line in output if line.strip()))
    telling = [line for line in lines if _TELLING.search(line) and not _NOISE.search(line)]
    return tuple(line[:240] for line in (telling or lines)[-count:])


def from_os_error(error: OSError) -> SetupError:
    """The same for what this script could not write itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SetupError(f'the disk is full ({error})', DISK_REMEDY)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = 'name a folder you may write to: MMGCVIT_VENV=... MMGCVIT_CACHE=...'
        return SetupError(f'a folder cannot be written to ({error})', remedy)
    return SetupError(str(error), 'see the message; run the same command again')
