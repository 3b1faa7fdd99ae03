"""COCO's annotation files: whole, or of very large ones the parts that a first look needs."""

import json
import mmap
import re
from pathlib import Path

LARGE = 32 * 2**20  # bytes; more takes longer than a second or two to read
FIRST_IMAGES = 20
PART = 2**20


def is_large(path: Path) -> bool:
    """Tell whether reading the whole file takes longer than the start of a training should."""
    return path.stat().st_size > LARGE


def read_coco(path: Path, in_part: bool) -> dict:
    """Read an annotation file.

    Args:
        path: JSON file.
        in_part: Whether only the categories and the first images are read.

    Raises:
        ValueError: If it is not JSON, or not an object.
    """
    if in_part:
        return _read_part(path)
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}')
    return content


def _read_part(path: Path) -> dict:
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:64].lstrip()[:1] != b'{' or data[-64:].rstrip()[-1:] != b'}':
            raise ValueError('it does not begin with { and end with }, it may be cut short')
        content = {}
        for key, most in (('categories', None), ('images', FIRST_IMAGES)):
            place = _find(data, key)
            if place is not None:
                content[key] = _read_list(data, place, most)
    return content


def _find(data: mmap.mmap, key: str) -> int | None:
    """Return where the list of that name begins; the file's ends are looked at first."""
    pattern = re.compile(rb'"%s"\s*:\s*\[' % key.encode())
    for start, end in ((0, PART), (max(0, len(data) - PART), len(data)), (0, len(data))):
        match = pattern.search(data, start, end)
        if match:
            return match.end()
    return None


def _read_list(data: mmap.mmap, place: int, most: int | None) -> list:
    """Read the first elements of a list, each an object of less than ``PART`` bytes."""
    decoder = json.JSONDecoder()
    elements = []
    while most is None or len(elements) < most:
        text = data[place : place + PART].decode(errors='replace')
        skipped = len(text) - len(text.lstrip(', \t\r\n'))
        if text[skipped : skipped + 1] in (']', ''):
            break
        element, end = decoder.raw_decode(text, skipped)
        elements.append(element)
        place += len(text[:end].encode())
    return elements
