"""Tasks: what to encode, and how to score it. Each class is configured in YAML with `class_path: mc2.benchmarks.tasks.<name>`."""

from mc2.benchmarks.tasks.folder import TaskFolder, write_task_folder
from mc2.benchmarks.tasks.task import PREDICTIONS_SCHEMA, ImageSet, Task

__all__ = ["PREDICTIONS_SCHEMA", "ImageSet", "Task", "TaskFolder", "write_task_folder"]
