"""Draw a report as the picture in the README: ``python docs/picture.py report.json docs/report.svg``."""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from debugkit import Report
from debugkit.render.text import print_report


def main(source: str, picture: str) -> None:
    text = io.StringIO()
    print_report(Report.from_json(Path(source).read_bytes()), text, color="always", fail_on="fail", width=100)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text.getvalue()))
    svg = console.export_svg(title="debugkit check examples/broken/no_special_tokens.py")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from the web
    Path(picture).write_text(svg.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas"), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
