"""The commands of both packages in pipes, in small and dumb terminals, and after Ctrl-C. Needs the data packages."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import torch
from rich.console import Console
from udml import _flags
from udml.experiments import jobs
from udml.experiments.plan import Plan, Trial

from udml_kernels.tools import console

TRAIN = ("udml", "train", "--data", "digits", "--epochs")


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def _in_terminal(columns: int, command: list[str], interrupt_at: str | None = None, **variables: str):
    """What a terminal of that width shows, and the exit code; Ctrl-C is pressed where a text appears."""
    clean = {k: v for k, v in os.environ.items() if k not in ("TERM", "NO_COLOR", "COLUMNS", "CI")}
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(command[0], command, {**clean, "TERM": "xterm", **variables})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = ""
    while True:
        try:
            read = os.read(terminal, 1 << 16)
        except OSError:
            break
        shown += read.decode(errors="replace")
        if interrupt_at and interrupt_at in shown:
            interrupt_at = os.write(terminal, b"\x03") and None
    os.close(terminal)
    return shown, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize(
    "command",
    [
        _command("udml_kernels", "check", "--op", "normal", "uniform", "--dtype", "float32"),
        _command("udml_kernels", "info"),
        _command(*TRAIN, 2),
    ],
    ids=lambda command: command[3],
)
def test_the_reader_of_a_pipe_may_leave(command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0


def test_the_reader_of_a_pipe_may_leave_rich(monkeypatch):
    """rich answers a closed pipe with an exit whose code is 1; which of the two writes first is chance."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(console.os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        console.leave("udml", lambda: Console(file=Closed()).print("text"))
    assert left.value.code == 0
    with pytest.raises(SystemExit) as left:
        console.leave("udml", lambda: sys.exit(3))
    assert left.value.code == 3


def test_a_narrow_terminal_cuts_no_number():
    shown, code = _in_terminal(40, _command(*TRAIN, 1))
    assert code == 0 and "…" not in shown and "epoch 1/1 weighted loss" in shown
    assert len(re.findall(r"σ=\d+ +│ +\d\.\d{3} │ \d\.\d{3}", shown)) == 5


def test_a_dumb_terminal_gets_no_escapes_and_no_color_no_colours():
    shown, code = _in_terminal(100, _command(*TRAIN, 1), TERM="dumb")
    assert code == 0 and "\x1b" not in shown and "epoch 1/1 weighted loss" in shown
    shown, code = _in_terminal(100, _command(*TRAIN, 1), NO_COLOR="1")
    assert code == 0 and not re.search(r"\x1b\[(\d+;)*[34]\d", shown)


def test_an_interrupted_training_goes_on(tmp_path):
    run = tmp_path / "run"
    shown, code = _in_terminal(80, _command(*TRAIN, 40, "--out", run), interrupt_at="Epoch 2")
    assert code == 130 and "Traceback" not in shown
    last = shown.strip().splitlines()[-1].strip()
    assert last == f"python -m udml train: interrupted; --resume goes on after the last finished epoch in {run}"
    assert not list(run.rglob("*.part"))
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] in (1, 2)


def test_an_interrupted_command_says_so_in_one_line(monkeypatch, capsys):
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["/usr/bin/udml-kernels"])
    with pytest.raises(SystemExit) as stopped:
        console.leave("udml_kernels", interrupt)
    assert stopped.value.code == 130 and capsys.readouterr().err == "udml-kernels: interrupted\n"


def test_a_command_is_called_what_the_user_called_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/udml"])
    assert console.program("udml") == "udml" and _flags.prog("train") == "udml train"
    monkeypatch.setattr(sys, "argv", ["/packages/udml/__main__.py"])
    assert console.program("udml") == "python -m udml"


def test_an_interruption_ends_the_workers(tmp_path):
    plan = Plan("digits", epochs=3, draws=1)
    work = [plan.job("run", "static", seed, Trial()) for seed in range(3)]

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_jobs(work, tmp_path, 2, interrupt)
    assert [p for p in jobs.multiprocessing.active_children() if p.is_alive()] == []
    assert len(list(tmp_path.iterdir())) == 1
