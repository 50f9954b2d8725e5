"""``python -m debugkit``."""

from debugkit.cli import main

main()
