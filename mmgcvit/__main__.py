"""``python -m mmgcvit``: the command ``mmgcvit``, also where only a checkout is in PYTHONPATH."""

from .cli import main

if __name__ == '__main__':
    main()
