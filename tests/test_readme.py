"""The README's examples run, and print what they say."""

import re
from pathlib import Path

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.S)


def test_examples(capsys):
    promised = 0
    for code in BLOCKS:
        exec(compile(code, "README.md", "exec"), {})
        printed = capsys.readouterr().out.strip()
        if promise := re.search(r"print\(.*\)  # (.*)", code):
            assert printed == promise[1]
            promised += 1
    assert promised == 1


def test_the_first_lines_show_a_speed_up(capsys):
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    pattern = r"64 noisy images: \d+ ms in PyTorch, \d+ ms here, ([\d.]+)x faster"
    assert float(re.fullmatch(pattern, capsys.readouterr().out.strip())[1]) > 1
