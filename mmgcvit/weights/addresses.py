"""Addresses of weights, as they may be shown: without what gives access to them."""

import re

TIMEOUT = 10  # seconds that a server may be silent


def public_name(source: str) -> str:
    """Return a source as it may be shown: a URL without user, password, query and fragment.

    Paths are returned as they are. No URL is an error, however malformed.
    """
    if not (match := re.match(r'([\w+.-]+://)(([^/?#]*).*)', source, re.DOTALL)):
        return source
    scheme, rest, authority = match.groups()
    if '@' not in authority and re.match(r'[^\[]*:(?!\d*$)', authority):
        # no port follows the colon, but a password in which / ? or # is not quoted
        rest = rest.rpartition('@')[2]
    authority, path = re.match(r'([^/?#]*)([^?#]*)', rest).groups()
    return f'{scheme}{authority.rpartition("@")[2]}{path}'


def public_text(error: BaseException) -> str:
    """Return what an error says, in one line, with the URLs in it as they may be shown."""
    text = ' '.join(str(error).split())
    text = re.sub(r"""[\w+.-]+://[^\s'"<>]+""", lambda match: public_name(match[0]), text)
    # HTTP libraries name a URL by its path and query, too
    return re.sub(r"""(/[^\s'"<>?#]*)[?#][^\s'"<>]*""", r'\1', text)
