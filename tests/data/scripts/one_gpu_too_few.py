"""The second process believes in CUDA and has no GPU; the first one waits for it."""

import os

from mmengine.config import Config

from mmgcvit.engine import run_tool
from mmgcvit.engine.launch import start_processes

if __name__ == '__main__':
    device = 'cuda' if os.environ['LOCAL_RANK'] == '1' else 'cpu'
    run_tool(lambda: start_processes(Config(dict(launcher='pytorch')), device))
