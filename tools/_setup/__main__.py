"""Entry point of tools/setup_env.sh. Standard library only: nothing is installed yet."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _setup.cli import main  # noqa: E402

sys.exit(main())
