"""Compile and link a few shared libraries: through ninja where there is one, else in a thread pool."""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path


@dataclass
class Step:
    output: Path
    inputs: list[Path]
    command: list[str]
    depfile: Path | None = None


@dataclass
class Toolchain:
    compiler: str
    folder: Path
    compiles: list[Step] = field(default_factory=list)
    links: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def version(self) -> str:
        command = [*shlex.split(self.compiler), "--version"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]

    def library(self, output: Path, sources: list[Path], flags: list[str], link_flags: list[str], variant: str) -> None:
        """Compile `sources` with `flags` into objects of their own and link them."""
        compiler, objects = shlex.split(self.compiler), []
        for source in sources:
            object_file = self.folder / variant / f"{source.stem}.o"
            depfile = object_file.with_suffix(".d")
            command = [*compiler, *flags, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(object_file)]
            self.compiles.append(Step(object_file, [source], command, depfile))
            objects.append(object_file)
        # Linked aside and moved into place: a process may have the old library mapped.
        linked = self.folder / variant / output.name
        link = shlex.join([*compiler, *map(str, objects), *link_flags, "-o", str(linked)])
        command = ["sh", "-c", f"{link} && mv -f {shlex.quote(str(linked))} {shlex.quote(str(output))}"]
        self.links.append(Step(output, objects, command))


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _ninja() -> str | None:
    if spec := find_spec("ninja"):
        found = shutil.which("ninja", path=os.pathsep.join(str(p) for p in _scripts(spec.origin)))
        if found:
            return found
    return shutil.which("ninja")


def _scripts(origin: str | None):
    import sysconfig

    yield sysconfig.get_path("scripts")
    # pip's isolated environment: <overlay>/lib/pythonX.Y/site-packages/ninja and <overlay>/bin.
    if origin:
        yield Path(origin).parents[4] / "bin"


def _escape(value: object) -> str:
    return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _ninja_file(tools: Toolchain) -> str:
    lines = ["rule run", "  command = $run", "  depfile = $depfile", "  deps = gcc", "rule link", "  command = $run"]
    for step in (*tools.compiles, *tools.links):
        rule = "run" if step.depfile else "link"
        lines.append(f"build {_escape(step.output)}: {rule} {' '.join(map(_escape, step.inputs))}")
        lines.append("  run = " + shlex.join(step.command).replace("$", "$$"))
        if step.depfile:
            lines.append(f"  depfile = {step.depfile}")
    return "\n".join(lines) + "\n"


def build(tools: Toolchain) -> None:
    """Run what is out of date, in parallel; a command that fails ends the build with its output."""
    for step in (*tools.compiles, *tools.links):
        step.output.parent.mkdir(parents=True, exist_ok=True)
    jobs = str(len(os.sched_getaffinity(0)))
    ninja = _ninja()
    if ninja:
        script = tools.folder / "build.ninja"
        write_if_changed(script, _ninja_file(tools))
        if subprocess.run([ninja, "-C", str(tools.folder), "-f", str(script), "-j", jobs]).returncode:
            raise SystemExit("udml-kernels: the kernels did not compile, see above")
        return

    def run(step: Step) -> bool:
        print(shlex.join(step.command), flush=True)
        return subprocess.run(step.command).returncode == 0

    with ThreadPoolExecutor(int(jobs)) as pool:
        for stage in (tools.compiles, tools.links):
            if not all(pool.map(run, stage)):
                raise SystemExit("udml-kernels: the kernels did not compile, see above")
