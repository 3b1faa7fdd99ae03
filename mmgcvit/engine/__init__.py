from .config import load_config
from .runner import build_runner
from .tool import ToolError, run_tool

__all__ = ['ToolError', 'build_runner', 'load_config', 'run_tool']
