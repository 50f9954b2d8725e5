"""The status line in a pseudo-terminal: it gives way to what a program prints, and to its progress bars."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
pytestmark = pytest.mark.slow

PROGRAM = """
    import sys, time
    import torch

    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(16):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).pow(2).mean().backward()
        optimizer.step()
        time.sleep(0.1)
        if step == 7:
            print("half way")
        if sys.argv[1] == "bar":
            print(f"\\r{step + 1} of 16", end="", file=sys.stderr)
    print("the end")
"""


def screen(folder: Path, kind: str) -> tuple[list[str], str]:
    """What stands on the terminal in the end, and all that was written."""
    (folder / "train.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "debugkit", "watch", "--no-preflight", "--format", "concise"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execv(sys.executable, [*command, "train.py", kind])
    written = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:
            break
        written += part
    os.waitpid(pid, 0)
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    lines: list[list[str]] = [[]]
    column = 0
    for character in text:
        if character == "\n":
            lines.append([])
        if character in "\r\n":
            column = 0
            continue
        lines[-1][column : column + 1] = character
        column += 1
    return ["".join(line).rstrip() for line in lines], text


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_lines_of_the_program_stand_alone(tmp_path: Path) -> None:
    lines, text = screen(tmp_path, "plain")
    assert "half way" in lines
    assert re.search(r"debugkit: step \d+ · loss [\d.e-]+ · lr 0.01 · [\d.]+ steps/s · no finding", text)
    assert not any("no finding" in line for line in lines)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_progress_bar_is_left_alone(tmp_path: Path) -> None:
    _, text = screen(tmp_path, "bar")
    assert "\r16 of 16" in text
    after = text[text.index("\r1 of 16") : text.rindex("\r16 of 16")]
    assert "debugkit: step" not in after.replace("half way", "").split("\r9 of 16")[1]
