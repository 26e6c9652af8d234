"""The README's examples run, and the first prints what it says."""

import re
from pathlib import Path


def test_example(capsys):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    first, *others = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(first, "README.md", "exec"), {})
    promised = re.search(r"print\(.*\)  # (.*)", first)[1]
    assert capsys.readouterr().out.strip() == promised
    for code in others:
        exec(compile(code, "README.md", "exec"), {})
