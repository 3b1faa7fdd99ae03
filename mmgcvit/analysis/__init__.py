from .complexity import Complexity, build_on_meta, count_complexity
from .task import Task, task_of

__all__ = ['Complexity', 'Task', 'build_on_meta', 'count_complexity', 'task_of']
