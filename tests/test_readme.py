"""The README's example runs and prints what it says."""

import re
from pathlib import Path


def test_example(capsys):
    text = (Path(__file__).parent.parent / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    exec(compile(code, "README.md", "exec"), {})
    promised = re.search(r"print\(.*\)  # (.*)", code)[1]
    assert capsys.readouterr().out.strip() == promised
