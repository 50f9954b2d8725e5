"""A check's own examples, judged and shown."""

from __future__ import annotations

import sys
import traceback
from typing import TextIO

from debugkit.check import Check
from debugkit.console.terminal import Color, Page, prose
from debugkit.errors import one_line
from debugkit.registry import Registry
from debugkit.testing import judge_example


def show_examples(check: Check, registry: Registry, file: TextIO, color: Color, *, verbose: bool) -> int:
    """Write a line per example, as soon as it is judged.

    Args:
        check: whose examples.
        registry: the checks and evidence that exist.
        file: where the lines go.
        color: whether to colour them.
        verbose: whether the traceback of an example that raises goes to stderr.

    Returns:
        The number of things that are wrong: examples that are judged otherwise than their name says, and a
        missing kind of example.
    """
    page = Page(file, color)
    page.line(prose(check.id, "bold"))
    page.show()
    wrong = 0
    for name in check.examples:
        try:
            outcome = judge_example(check, name, registry)
        except Exception as error:
            if verbose:
                traceback.print_exception(error, file=sys.stderr)
            ok, said = False, f"raised {one_line(error)}"
        else:
            result = outcome.result
            active = result.active or result.findings
            ok = outcome.ok
            said = f"{result.status}: {result.reason or (active[0].message if active else 'nothing said')}"
        wrong += not ok
        page = Page(file, color)
        head = prose(f"  {'✓' if ok else '✗'} ", "green" if ok else "red") + prose(name)
        page.line(head, prose(f": {said}"), hang=6)
        page.show()
    for kind in ("good", "bad"):
        if not any(name.startswith(kind) for name in check.examples):
            wrong += 1
            page = Page(file, color)
            page.line(prose(f"  ✗ has no `{kind}*()` example", "red"))
            page.show()
    return wrong
