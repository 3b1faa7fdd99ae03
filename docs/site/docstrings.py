"""Converts the reStructuredText in docstrings to Markdown, which mkdocstrings reads."""

import re

import griffe

REPLACEMENTS = {
    r':\w+:`~?\.?([^`]+)`': r'`\1`',
    r'`([^`<]+?)\s+<(\S+)>`_': r'[\1](\2)',
    r'(?m)::$': ':',
    r'(?m)^Example:$': 'Examples:',
}


class MarkdownDocstrings(griffe.Extension):
    """Replace roles, links and markers of literal blocks."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            for pattern, replacement in REPLACEMENTS.items():
                obj.docstring.value = re.sub(pattern, replacement, obj.docstring.value)
