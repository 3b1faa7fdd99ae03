"""mmengine's loading of checkpoints, made safe."""

from typing import Any

from mmengine.runner import CheckpointLoader

from .reading import read_checkpoint
from .sources import fetch


def load_from_safe_file(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint for mmengine's Runner; as :func:`read_checkpoint`, from a path or URL."""
    checkpoint = read_checkpoint(fetch(filename), map_location)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        # Runner.resume would execute this text as a Python config, for a key long out of use
        checkpoint['meta'].pop('config', None)
    return checkpoint


def register_checkpoint_loaders() -> None:
    """Make mmengine read checkpoints safely, process-wide, from all that :func:`fetch` takes.

    Called by this package's tools only: importing the package changes nothing.
    """
    CheckpointLoader.register_scheme(
        prefixes=('', 'file://', 'http://', 'https://', 'hf://', 'timm://'),
        loader=load_from_safe_file,
        force=True,
    )
