"""Tasks: where prompts come from and when an answer is right. One file a task.

from judgelib.tasks import load_task
task = load_task("sandbox-math")
questions = task.questions("test", 100)
right = task.score(questions, answers)

Real benchmarks load from the hub, load_task("gsm8k"), or from the dataset's own files,
load_task("gsm8k", source="path/to/folder").
"""

from judgelib.tasks.base import Annotated, Question, Settling, Task, having, load_task

__all__ = ["Annotated", "Question", "Settling", "Task", "having", "load_task"]
