"""Encodings of text files that readers of plain UTF-8 cannot parse."""

import json

PACKED = {
    b'\x1f\x8b': ('is compressed with gzip', 'decompress it with gunzip'),
    b'PK': ('is a zip archive', 'decompress it with unzip'),
}


def encoding_fault(path: str, start: bytes) -> str | None:
    """Return why a JSON or text file is not plain UTF-8 and what to do, or None if it may be.

    Args:
        path: The file, for the message.
        start: Its first four bytes.
    """
    for mark, (fault, remedy) in PACKED.items():
        if start.startswith(mark):
            return f'{path} {fault}: {remedy}'
    encoding = json.detect_encoding(start).upper()  # also without a byte-order mark
    if encoding == 'UTF-8-SIG':
        return (
            f'{path} has a byte-order mark, which its reader does not accept: save it as UTF-8 '
            rf"without this mark, for example with sed -i '1s/^\xEF\xBB\xBF//' {path}"
        )
    if encoding == 'UTF-8':
        return None
    code = encoding.replace('-LE', 'LE').replace('-BE', 'BE')
    return (
        f'{path} is encoded in {encoding[:6]}: save it as UTF-8, for example with iconv -f {code} '
        f'-t UTF-8 {path} > NEW_FILE'
    )
