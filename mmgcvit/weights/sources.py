"""Sources of weights files: paths, URLs and model hubs. Each is resolved to a local file."""

import hashlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock

from ..errors import UserError
from ..files import write_atomically
from ..optional_mmengine import print_log

TIMEOUT = 10  # seconds to wait for data from a server
# folder in torch hub's cache; the names of downloaded files do not begin with a dot
NOTES = '.mmgcvit'
# file names in timm's repositories on the Hugging Face Hub, the safer format first
TIMM_FILES = ('model.safetensors', 'pytorch_model.bin')


def fetch(source: str | os.PathLike, sha256: str | None = None) -> Path:
    """Return the local file for a path or URL, which is downloaded if necessary.

    Downloads are cached: http(s):// in torch hub's cache, hf:// and timm:// in huggingface_hub's.
    Processes that request the same file at the same time share one download.

    Args:
        source: Path (``~`` is expanded), ``file://`` or ``http(s)://`` URL,
            ``hf://OWNER/REPO/FILE`` (or ``OWNER/REPO@REVISION/FILE``) for a file on the Hugging
            Face Hub, or ``timm://MODEL`` for one of timm's models there, for example
            ``timm://gcvit_tiny.in1k``.
        sha256: Expected SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: If the file does not exist, the scheme is not supported, the download fails or
            the SHA-256 does not match.
    """
    source = os.fspath(source)
    scheme = match[1] if (match := re.match(r'([\w+.-]+)://', source)) else ''
    if scheme not in SCHEMES:
        raise UserError(
            f'the weights {public_name(source)!r} are not allowed: {scheme}:// is not supported; '
            'use a path or a URL with file://, http(s)://, hf:// or timm://'
        )
    path = SCHEMES[scheme](source)
    if sha256 is not None:
        _check_digest(path, sha256, source)
    return path


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_digest(path: Path, sha256: str, source: str) -> None:
    if not re.fullmatch(r'[0-9a-fA-F]{64}', str(sha256)):
        raise UserError(
            f'sha256={sha256!r} is not allowed: expected the 64 hexadecimal digits that '
            '`sha256sum FILE` prints'
        )
    found = digest_of(path)
    if found != sha256.lower():
        origin = f'{path}' if source == str(path) else f'{path} (from {public_name(source)})'
        raise UserError(
            f'SHA-256 mismatch for {origin}: expected {sha256.lower()}, got {found}. The file '
            'differs or is damaged; delete a downloaded copy to fetch it again'
        )


def _local(source: str) -> Path:
    path = _path_in(source) if source.startswith('file://') else Path(source)
    try:
        path = path.expanduser()
        found = None if path.is_file() else 'is a folder' if path.is_dir() else 'does not exist'
    except RuntimeError:
        found = f'does not exist ({path.parts[0]} is not a user with a home folder)'
    except OSError as error:
        found = f'cannot be read ({error.strerror})'
    if found:
        raise UserError(f'{path} {found}: specify the path or URL of a weights file')
    return path


def _path_in(url: str) -> Path:
    """Return the path in a file:// URL."""
    host, _, path = public_name(url).removeprefix('file://').partition('/')
    if host.lower() not in ('', 'localhost'):
        raise UserError(
            f'the weights {public_name(url)!r} are not allowed: file:// supports only local files, '
            f'got the host {host!r}: use file:///ABSOLUTE/PATH or a path'
        )
    return Path(unquote(f'/{path}'))


def _download(url: str) -> Path:
    name, shown = _name(url), public_name(url)
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    notes = _Notes.of(folder, name)
    path = folder / name
    try:
        path = _place(path, notes, url)
        if path.is_file():
            print_log(f'using the cached weights of {shown}: {path}', logger='current')
            return path
        notes.lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(notes.lock):
            # meanwhile, another process may have downloaded this file or one of the same name
            path = _place(folder / name, notes, url)
            if not path.is_file():
                print_log(f'downloading {shown} to {path}', logger='current')
                path.parent.mkdir(exist_ok=True)
                _download_to(notes.unfinished, url)
                if path == folder / name:
                    # written before the file, which would otherwise count as copied by a user
                    write_atomically(notes.origin, _digest(url).encode())
                notes.unfinished.replace(path)
    except (OSError, ValueError, RuntimeError, OverflowError, HTTPException) as error:
        # the original message, and therefore its traceback, may show the complete URL
        raise UserError(
            f'{shown} could not be downloaded ({public_text(error)}): copy the file to {path} '
            'manually, or use the path of a copy instead of the URL'
        ) from None
    return path


def _name(url: str) -> str:
    """Return a safe file name for the download of a URL.

    Raises:
        UserError: If the URL is not valid. The message omits every part that may be a password.
    """
    reason = None
    try:
        parts = urlparse(url)
        name = Path(unquote(parts.path)).name
        if not parts.hostname or parts.port == 0:
            reason = 'its host or port is missing'
        elif re.search(r'[\x00-\x20\x7f]', url) or re.search(r'[\x00-\x1f\x7f]', name):
            reason = 'it contains spaces or control characters'
    except ValueError:
        reason = 'its host or port is invalid'
    if reason:
        raise UserError(
            f'the weights {public_name(url)!r} are not allowed: {reason}; use a URL such as '
            'https://HOST/FILE, with spaces as %20, or the path of a copy'
        ) from None
    # the name must not be '..' or the folder of notes
    return name.lstrip('.') or 'weights'


class _Notes(NamedTuple):
    """Files about the downloads with one name, at paths that no download can have."""

    lock: Path
    unfinished: Path
    origin: Path  # contains the digest of the URL of the cached file

    @classmethod
    def of(cls, folder: Path, name: str) -> '_Notes':
        stem = folder / NOTES / _digest(name)
        return cls(*(stem.with_suffix(suffix) for suffix in ('.lock', '.part', '.origin')))


def _place(path: Path, notes: _Notes, url: str) -> Path:
    """Return the path of a URL's file in the cache. Its name is the one that torch.hub uses.

    Two URLs with the same file name are different files. The second is stored in a separate folder
    for its URL. A file that torch.hub or a user placed there has no recorded origin and is used.
    """
    digest = _digest(url)
    if notes.origin.is_file() and notes.origin.read_text() != digest:
        return path.parent / NOTES / digest / path.name
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()


def _download_to(path: Path, url: str) -> None:
    try:
        if '@' in urlparse(url).netloc:
            raise ValueError('a URL with a user name or password is not supported')
        size = _content_length(url)
        with _impatient():
            torch.hub.download_url_to_file(url, str(path))
        _check_download(path, size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _check_download(path: Path, size: int | None) -> None:
    found = path.stat().st_size
    # a broken connection looks like the end of the file
    if size not in (None, found):
        raise OSError(f'received {found} of {size} bytes')
    # servers often return a web page for a file that has moved; it must not be cached
    if is_web_page(path):
        raise OSError('the server sent a web page instead of a file')


def is_web_page(path: Path) -> bool:
    """Whether a file is HTML, which servers often return for a file that has moved."""
    with open(path, 'rb') as file:
        beginning = file.read(512).lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    return beginning.startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--'))


def _content_length(url: str) -> int | None:
    """Return the size of a URL's file in bytes, or None if the server does not report it."""
    try:
        with urlopen(Request(url, method='HEAD'), timeout=TIMEOUT) as response:
            return int(response.headers['Content-Length'])
    except (HTTPError, TypeError, ValueError):
        return None


@contextmanager
def _impatient() -> Iterator[None]:
    """Set a timeout for new connections, because torch.hub does not set one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_hub(source: str) -> Path:
    """Return the local copy of hf://OWNER/REPO/FILE.

    Raises:
        UserError: If the URL does not have this form, or the file is not available.
    """
    match = re.fullmatch(r'hf://([^/@?#]+/[^/@?#]+)(?:@([^/?#]+))?/([^?#]+)', source)
    if not match:
        raise UserError(
            f'the weights {public_name(source)!r} are not allowed: use hf://OWNER/REPO/FILE or '
            'hf://OWNER/REPO@REVISION/FILE'
        )
    repo, revision, name = match.groups()
    return _download_from_hub(source, repo, [name], revision)


def _from_timm(source: str) -> Path:
    """Return the local copy of timm://MODEL.

    Raises:
        UserError: If the URL does not have this form, or the file is not available.
    """
    model = source.removeprefix('timm://').strip('/')
    if not re.fullmatch(r'[\w.-]+', model):
        raise UserError(
            f'the weights {public_name(source)!r} are not allowed: use timm:// and the name of a '
            'pretrained model of timm, such as timm://gcvit_tiny.in1k'
        )
    return _download_from_hub(source, f'timm/{model}', TIMM_FILES, None)


def _download_from_hub(source: str, repo: str, names: Sequence[str], revision: str | None) -> Path:
    """Return the first of the files that exists in a repository, downloaded or cached."""
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f'{source} needs the package huggingface_hub: pip install huggingface_hub, or use '
            f'the path of a copy instead of {source}'
        ) from error
    endpoint = public_name(constants.ENDPOINT)
    offline = hub_is_offline()
    for name in names:
        print_log(
            f'loading {name} of {repo} from {endpoint} for {source}, cached in '
            f'{constants.HF_HUB_CACHE}' + (' (offline, using the cache)' if offline else ''),
            logger='current',
        )
        try:
            path = hf_hub_download(repo, name, revision=revision, local_files_only=offline)
        except Exception as error:  # the types depend on the version and its HTTP library
            absent = isinstance(error, EntryNotFoundError)
            if (
                absent
                and name != names[-1]
                and (offline or not isinstance(error, LocalEntryNotFoundError))
            ):
                continue
            url = f'{endpoint}/{repo}/resolve/{revision or "main"}/{names[0]}'
            message = public_text(error)[:300] or type(error).__name__
            reason = 'offline, and not in the cache' if offline else message
            raise UserError(
                f'{source} could not be downloaded ({reason}): download {url} on a machine with '
                'network access, copy it here and use the path of the copy instead'
            ) from None
        return Path(path)
    raise AssertionError('the last name returns or raises')


def hub_is_offline() -> bool:
    """Whether the Hugging Face Hub does not respond, or ``HF_HUB_OFFLINE`` is set.

    Without this check, huggingface_hub retries for up to a minute before it uses its cache.
    """
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)


def _answers(url: str) -> bool:
    """Whether a server responds, with any status."""
    try:
        with urlopen(Request(url, method='HEAD'), timeout=TIMEOUT):
            return True
    except HTTPError:
        return True
    except (OSError, ValueError, HTTPException):
        return False


SCHEMES: dict[str, Callable[[str], Path]] = {
    '': _local,
    'file': _local,
    'http': _download,
    'https': _download,
    'hf': _from_hub,
    'timm': _from_timm,
}


def public_name(source: str) -> str:
    """Return a source for display. A URL is shown without user, password, query and fragment.

    Paths are returned unchanged. Malformed URLs do not raise an error.
    """
    if not (match := re.match(r'([\w+.-]+://)(([^/?#]*).*)', source, re.DOTALL)):
        return source
    scheme, rest, authority = match.groups()
    if '@' not in authority and re.match(r'[^\[]*:(?!\d*$)', authority):
        # the text after the colon is not a port, but a password with an unquoted / ? or #
        rest = rest.rpartition('@')[2]
    rest = re.split(r'[?#]', rest, maxsplit=1)[0]
    authority, slash, path = rest.partition('/')
    return f'{scheme}{authority.rpartition("@")[2]}{slash}{path}'


def public_text(error: BaseException) -> str:
    """Return the message of an error in one line, with URLs as in :func:`public_name`."""
    text = ' '.join(str(error).split())
    text = re.sub(r"""[\w+.-]+://[^\s'"<>]+""", lambda match: public_name(match[0]), text)
    # HTTP libraries also show a URL as its path and query only
    return re.sub(r"""(/[^\s'"<>?#]*)[?#][^\s'"<>]*""", r'\1', text)
