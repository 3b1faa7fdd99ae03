"""Where weights files come from: paths, URLs and model hubs, each ending in a local file."""

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
from mmengine.logging import print_log

from ..errors import UserError
from ..files import write_atomically

TIMEOUT = 10  # seconds that a server may be silent
NOTES = '.mmgcvit'  # a folder in torch hub's cache; no file of a URL has a name with a dot first
# what timm's repositories on the Hugging Face Hub call the file, the safer format first
TIMM_FILES = ('model.safetensors', 'pytorch_model.bin')


def fetch(source: str | os.PathLike, sha256: str | None = None) -> Path:
    """Return the local file that a path or URL stands for.

    Downloads are kept: http(s):// in torch hub's cache, hf:// and timm:// in huggingface_hub's.
    Processes that ask for one file at the same time wait for one download.

    Args:
        source: Path (``~`` is expanded), ``file://`` or ``http(s)://`` URL,
            ``hf://OWNER/REPO/FILE`` (or ``OWNER/REPO@REVISION/FILE``) for a file on the Hugging
            Face Hub, or ``timm://MODEL`` for one of timm's models there, for example
            ``timm://gcvit_tiny.in1k``.
        sha256: Digest that the file must have, 64 hexadecimal digits.

    Raises:
        UserError: If the file does not exist, the scheme is not known, the download fails or the
            file has another digest.
    """
    source = os.fspath(source)
    scheme = match[1] if (match := re.match(r'([\w+.-]+)://', source)) else ''
    if scheme not in SCHEMES:
        raise UserError(
            f'checkpoint={public_name(source)!r} is not allowed: {scheme}:// is not known; give a '
            'path or a URL with file://, http(s)://, hf:// or timm://'
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
            f'sha256={sha256!r} is not allowed: give the 64 hexadecimal digits that '
            '`sha256sum FILE` prints'
        )
    found = digest_of(path)
    if found != sha256.lower():
        origin = f'{path}' if source == str(path) else f'{path}, from {public_name(source)},'
        raise UserError(
            f'{origin} has the SHA-256 {found}, and {sha256.lower()} was asked for: it is another '
            'file, or a damaged one; if it was downloaded, remove it to have it downloaded again'
        )


def _local(source: str) -> Path:
    path = _path_in(source) if source.startswith('file://') else Path(source)
    try:
        path = path.expanduser()
        found = None if path.is_file() else 'is a folder' if path.is_dir() else 'does not exist'
    except RuntimeError:
        found = f'does not exist, as {path.parts[0]} is not a user with a home folder'
    except OSError as error:
        found = f'cannot be read ({error.strerror})'
    if found:
        raise UserError(f'{path} {found}: give the path of a weights file, or a URL')
    return path


def _path_in(url: str) -> Path:
    """Return the path that a file:// URL names."""
    host, _, path = public_name(url).removeprefix('file://').partition('/')
    if host.lower() not in ('', 'localhost'):
        raise UserError(
            f'checkpoint={public_name(url)!r} is not allowed: it names the machine {host!r}, and '
            'file:// reads from this one only; give file:/// and an absolute path, or a path'
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
            print_log(f'weights of {shown} are taken from {path}', logger='current')
            return path
        notes.lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(notes.lock):
            # another process may have been faster, with this URL or another one of the same name
            path = _place(folder / name, notes, url)
            if not path.is_file():
                print_log(f'downloading {shown} to {path}', logger='current')
                path.parent.mkdir(exist_ok=True)
                _download_to(notes.unfinished, url)
                if path == folder / name:
                    # first, so that at no moment the file looks as if put there by hand
                    write_atomically(notes.origin, _digest(url).encode())
                notes.unfinished.replace(path)
    except (OSError, ValueError, RuntimeError, OverflowError, HTTPException) as error:
        # the original message, and so its traceback, may show the whole URL
        raise UserError(
            f'{shown} could not be downloaded ({public_text(error)}): put the file at {path} by '
            'hand, or give the path of a copy as checkpoint'
        ) from None
    return path


def _name(url: str) -> str:
    """Return the name of the file that a URL stands for, one that is safe in a folder.

    Raises:
        UserError: If it is not a URL. The message shows no part of it that may be a password.
    """
    reason = None
    try:
        parts = urlparse(url)
        name = Path(unquote(parts.path)).name
        if not parts.hostname or parts.port == 0:
            reason = 'its host or port is missing'
        elif re.search(r'[\x00-\x20\x7f]', url) or re.search(r'[\x00-\x1f\x7f]', name):
            reason = 'it has spaces or control characters'
    except ValueError:
        reason = 'its host or port cannot be read'
    if reason:
        raise UserError(
            f'checkpoint={public_name(url)!r} is not allowed: {reason}; give a URL such as '
            'https://HOST/FILE, with spaces as %20, or the path of a copy'
        ) from None
    # neither '..' nor the folder of notes may be the name
    return name.lstrip('.') or 'weights'


class _Notes(NamedTuple):
    """Files kept about the downloads of one name, where no download's own name can be."""

    lock: Path
    unfinished: Path
    origin: Path  # the digest of the URL from which the file in the cache is

    @classmethod
    def of(cls, folder: Path, name: str) -> '_Notes':
        stem = folder / NOTES / _digest(name)
        return cls(*(stem.with_suffix(suffix) for suffix in ('.lock', '.part', '.origin')))


def _place(path: Path, notes: _Notes, url: str) -> Path:
    """Return where a URL's file is kept: under its name, as torch.hub does.

    Files of one name from two URLs are different files: the second is kept in a folder of its URL
    alone. A file that torch.hub or a person put there has no origin and is taken.
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
    # a connection that breaks looks like the end of the file
    if size not in (None, found):
        raise OSError(f'{found} of {size} bytes came')
    # servers often answer with a web page for a file that has moved; it must not be kept
    if is_web_page(path):
        raise OSError('the server sent a web page instead of a file')


def is_web_page(path: Path) -> bool:
    """Whether a file is HTML, which servers send for a file that has moved."""
    with open(path, 'rb') as file:
        beginning = file.read(512).lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    return beginning.startswith((b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--'))


def _content_length(url: str) -> int | None:
    """Return the size of a URL's file in bytes, None if the server does not send it."""
    try:
        with urlopen(Request(url, method='HEAD'), timeout=TIMEOUT) as response:
            return int(response.headers['Content-Length'])
    except (HTTPError, TypeError, ValueError):
        return None


@contextmanager
def _impatient() -> Iterator[None]:
    """Limit the time that new connections may be silent: torch.hub's have no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_hub(source: str) -> Path:
    """Return the local copy of hf://OWNER/REPO/FILE.

    Raises:
        UserError: If the address is not of that form, or the file is not available.
    """
    match = re.fullmatch(r'hf://([^/@?#]+/[^/@?#]+)(?:@([^/?#]+))?/([^?#]+)', source)
    if not match:
        raise UserError(
            f'checkpoint={public_name(source)!r} is not allowed: give hf://OWNER/REPO/FILE or '
            'hf://OWNER/REPO@REVISION/FILE'
        )
    repo, revision, name = match.groups()
    return _download__from_hub(source, repo, [name], revision)


def _from_timm(source: str) -> Path:
    """Return the local copy of timm://MODEL.

    Raises:
        UserError: As of :func:`_from_hub`.
    """
    model = source.removeprefix('timm://').strip('/')
    if not re.fullmatch(r'[\w.-]+', model):
        raise UserError(
            f'checkpoint={public_name(source)!r} is not allowed: give timm:// and the name of one '
            'of its models with its weights, such as timm://gcvit_tiny.in1k'
        )
    return _download__from_hub(source, f'timm/{model}', TIMM_FILES, None)


def _download__from_hub(source: str, repo: str, names: Sequence[str], revision: str | None) -> Path:
    """Return the first of the names that a repository has, from the cache or downloaded."""
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f'{source} needs the package huggingface_hub: pip install huggingface_hub, or give '
            'the path of a copy as checkpoint'
        ) from error
    endpoint = public_name(constants.ENDPOINT)
    # huggingface_hub tries for up to a minute before it looks into its cache
    offline = constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT)
    for name in names:
        print_log(
            f'{source} is {name} of {repo} at {endpoint}, kept in '
            f'{constants.HF_HUB_CACHE}' + (' (no answer from there now)' if offline else ''),
            logger='current',
        )
        try:
            path = hf_hub_download(repo, name, revision=revision, local_files_only=offline)
        except Exception as error:  # which ones depends on the version, and on its HTTP library
            absent = isinstance(error, EntryNotFoundError)
            if (
                absent
                and name != names[-1]
                and (offline or not isinstance(error, LocalEntryNotFoundError))
            ):
                continue
            url = f'{endpoint}/{repo}/resolve/{revision or "main"}/{names[0]}'
            said = public_text(error)[:300] or type(error).__name__
            reason = 'no answer from there' if offline else said
            raise UserError(
                f'{source} could not be downloaded ({reason}): get {url} on a machine that can, '
                'copy it here and give the path of the copy as checkpoint'
            ) from None
        return Path(path)
    raise AssertionError('the last name returns or raises')


def _answers(url: str) -> bool:
    """Whether a server answers at all, whatever the answer."""
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
    """Return a source as it may be shown: a URL without user, password, query and fragment.

    Paths are returned unchanged. No URL raises an error, however malformed.
    """
    if not (match := re.match(r'([\w+.-]+://)(([^/?#]*).*)', source, re.DOTALL)):
        return source
    scheme, rest, authority = match.groups()
    if '@' not in authority and re.match(r'[^\[]*:(?!\d*$)', authority):
        # what follows the colon is a password in which / ? or # is not quoted, not a port
        rest = rest.rpartition('@')[2]
    authority, path = re.match(r'([^/?#]*)([^?#]*)', rest).groups()
    return f'{scheme}{authority.rpartition("@")[2]}{path}'


def public_text(error: BaseException) -> str:
    """Return an error's message in one line, with its URLs as they may be shown."""
    text = ' '.join(str(error).split())
    text = re.sub(r"""[\w+.-]+://[^\s'"<>]+""", lambda match: public_name(match[0]), text)
    # HTTP libraries name a URL by its path and query, too
    return re.sub(r"""(/[^\s'"<>?#]*)[?#][^\s'"<>]*""", r'\1', text)
