"""A process that answers requests: lines of JSON with "do" (a method of the server's session) and its arguments."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from .checkouts import ROOT


class ProcessError(RuntimeError):
    """A process failed to do what was asked, or has ended."""


class Process:
    """The client. The process is started by the first request, and again by the first one after it has ended.

    Args:
        name: for messages.
        command: a module and its arguments.
        environment: variables that are added to this process's.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str]):
        self.name = name
        self._command, self._environment = [sys.executable, "-m", *command], {**os.environ, **environment}
        self._process: subprocess.Popen | None = None

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            ProcessError: with the error of the process.
        """
        process = self._process = self._process or subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self.close()
            raise ProcessError(f"{self.name}: the process ended with {code} when asked for {do}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessError(f"{self.name}: {do}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # What was written to a process that has ended cannot be flushed.
            with suppress(BrokenPipeError):
                process.communicate()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def serve(session: Any, requests: Any, answers: Any) -> None:
    """Answer requests until there are no more; an exception becomes the answer's "error"."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
