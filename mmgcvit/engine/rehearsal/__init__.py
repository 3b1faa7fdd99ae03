"""A training in a minute, before the real one.

``rehearsal`` runs all steps, ``validation`` the part that every training runs by itself, and
``samples`` chooses the items that are loaded.
"""

from .validation import RehearseValidation

__all__ = ['RehearseValidation']
