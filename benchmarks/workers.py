"""Implementations side by side, each in a process of its own that waits while another one works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Worker:
    """The parent's end."""

    def __init__(self, name: str, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self.name = name
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(self, task: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended before it answered {task!r}; its error is above")
        return json.loads(answer)

    def end(self) -> None:
        self.process.communicate()  # closes stdin, at which the worker ends


def serve(answer: Callable[[str], Any]) -> None:
    """The worker's end: reads tasks from stdin, one a line, and answers each as JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), file=answers, flush=True)
