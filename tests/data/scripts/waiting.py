"""Each of several processes waits when it is connected with the others."""

import time

from mmengine.config import Config

from mmgcvit.engine import run_tool
from mmgcvit.engine.launch import start_processes


def main() -> None:
    start_processes(Config(dict(launcher='pytorch')), 'cpu')
    print('connected', flush=True)
    time.sleep(300)


if __name__ == '__main__':
    run_tool(main)
