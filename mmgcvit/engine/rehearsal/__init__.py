"""A training in a minute, before the real one.

``rehearsal`` runs all steps, ``validation`` the part that every training runs by itself.
``samples`` chooses the items that are loaded, ``steps`` shortens the training, and ``prediction``
computes what the complete training takes.
"""

from .rehearsal import rehearse
from .validation import RehearseValidation

__all__ = ['RehearseValidation', 'rehearse']
