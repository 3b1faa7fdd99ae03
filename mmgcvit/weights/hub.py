"""Files on the Hugging Face Hub, through huggingface_hub, which goes on with broken downloads."""

import re
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mmengine.logging import print_log

from ..errors import UserError
from .addresses import TIMEOUT, public_name, public_text

# what timm's repositories on the Hugging Face Hub call the file, the safer format first
TIMM_FILES = ('model.safetensors', 'pytorch_model.bin')


def from_hub(source: str) -> Path:
    """Return the local copy of hf://OWNER/REPO/FILE.

    Raises:
        UserError: If the address is not of that form, or it cannot be had.
    """
    match = re.fullmatch(r'hf://([^/@?#]+/[^/@?#]+)(?:@([^/?#]+))?/([^?#]+)', source)
    if not match:
        raise UserError(
            f'checkpoint={public_name(source)!r} is not allowed: give hf://OWNER/REPO/FILE or '
            'hf://OWNER/REPO@REVISION/FILE'
        )
    repo, revision, name = match.groups()
    return _download_from_hub(source, repo, [name], revision)


def from_timm(source: str) -> Path:
    """Return the local copy of timm://MODEL.

    Raises:
        UserError: As of :func:`from_hub`.
    """
    model = source.removeprefix('timm://').strip('/')
    if not re.fullmatch(r'[\w.-]+', model):
        raise UserError(
            f'checkpoint={public_name(source)!r} is not allowed: give timm:// and the name of one '
            'of its models with its weights, as timm://gcvit_tiny.in1k'
        )
    return _download_from_hub(source, f'timm/{model}', TIMM_FILES, None)


def _download_from_hub(source: str, repo: str, names: Sequence[str], revision: str | None) -> Path:
    """Return the first of a repository's files that there is, from the cache or downloaded."""
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f'{source} needs the package huggingface_hub: pip install huggingface_hub, or give '
            'the path of a copy as checkpoint'
        ) from error
    endpoint = public_name(constants.ENDPOINT)
    # huggingface_hub itself tries for up to a minute before it looks into its cache
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
    """Whether a server answers at all, with whatever it says."""
    try:
        with urlopen(Request(url, method='HEAD'), timeout=TIMEOUT):
            return True
    except HTTPError:
        return True
    except (OSError, ValueError, HTTPException):
        return False
