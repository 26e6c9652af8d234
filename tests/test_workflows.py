"""The workflows for hosts outside call targets that exist, and the package's metadata agrees with itself."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import udml_kernels

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(path):
    workflow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    # Read-only by default, and no job hangs for hours.
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] and job["timeout-minutes"] <= 120, name
        assert set([job["needs"]] if "needs" in job else []) <= workflow["jobs"].keys()
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), name
            for target in re.findall(r"^make ([a-z-]+)", step.get("run", ""), re.M):
                assert target in targets, f"{path.name}: no target {target}"


def test_workflows_are_there():
    assert {"tests", "wheels"} <= {path.stem for path in WORKFLOWS}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_version_is_the_same_everywhere():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == udml_kernels.__version__
    assert citation["license"] == project["license"]
