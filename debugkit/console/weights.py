"""``debugkit weights``: the checklist of a checkpoint, and the table of its layers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from debugkit.checkpoints.checkpoint import Checkpoint, open_checkpoint
from debugkit.checkpoints.comparison import Comparison, compare
from debugkit.checkpoints.layer_table import LayerTable, refuse_table
from debugkit.config import Config
from debugkit.console.outputs import write_report
from debugkit.console.terminal import Page, is_terminal
from debugkit.errors import Broken, Unavailable, UsageError, nearest
from debugkit.probes.layer_spectra import LayerSpectra
from debugkit.registry import Registry, load, load_of_checkpoints
from debugkit.render.layers import print_layers, print_spectrum, worst
from debugkit.render.moves import print_comparison
from debugkit.report import Report
from debugkit.runner import OnEvent, Run
from debugkit.weights.engine import analyse
from debugkit.weights.layer_spectrum import LayerSpectrum
from debugkit.weights.ranks import torchrun_ranks
from debugkit.weights.settings import Progress, Settings

if TYPE_CHECKING:
    from debugkit.console.terminal import Color


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; the names are those of the options."""

    path: str
    compare: str | None
    base: str | None
    select: list[str]
    ignore: list[str]
    config: Config
    settings: tuple[str, ...]
    places: list[tuple[str, str]]
    layers: str | None
    plot: str | None
    layer: str | None
    color: Color
    verbose: bool
    quiet: bool


def weigh(request: Request, stdout: TextIO, on_event: OnEvent) -> Report:
    """Judge a checkpoint and write everything that was asked for; of several processes the first one writes.

    Raises:
        UsageError: something can't be read or written, or names nothing.
    """
    if request.layers is not None:
        refuse_table(request.layers)
    if request.plot is not None and Path(request.plot).suffix != ".svg":
        raise UsageError(f"`--plot {request.plot}` must end in .svg")
    registry = _checks_for(request)
    registry.match([*request.select, *request.ignore])
    with torchrun_ranks() as ranks:
        first = ranks is None or ranks.rank == 0
        with _Bar(sys.stderr, quiet=request.quiet or not first) as bar:
            settings = Settings(on_progress=bar, ranks=ranks)
            checkpoint = open_checkpoint(request.path, request.base, settings)
            other = open_checkpoint(request.compare, None, settings) if request.compare else None
            run = Run(
                checkpoint,
                select=request.select,
                ignore=request.ignore,
                config=request.config,
                settings=request.settings,
                registry=registry,
                on_event=on_event,
                keep=[LayerSpectra],
            )
            report = run.execute()
            spectra = None if report.interrupted else _spectra(run)
            second = analyse(other.matrices, settings).layers if other is not None and spectra else ()
        moved = compare(checkpoint, other) if other is not None and first and spectra else None
    if first:
        _write(request, report, spectra, (checkpoint, other, moved, second), stdout)
    return report


def _checks_for(request: Request) -> Registry:
    """Those that a checkpoint needs; all of them where the request or the configuration names another."""
    few = load_of_checkpoints(request.config.load)
    named = {*request.config.names, *request.select, *request.ignore}
    named |= {setting.partition(".")[0] for setting in request.settings}
    try:
        few.match(named - set(few.evidence))
    except UsageError:
        return load(request.config.load)
    return few


def _spectra(run: Run) -> LayerSpectra | None:
    try:
        found: LayerSpectra = run.evidence(LayerSpectra)
    except (Unavailable, Broken):
        return None
    return found


def _write(
    request: Request,
    report: Report,
    spectra: LayerSpectra | None,
    compared: tuple[Checkpoint, Checkpoint | None, Comparison | None, Sequence[LayerSpectrum]],
    stdout: TextIO,
) -> None:
    layers = spectra.layers if spectra else ()
    marked = _marked(report)
    chosen = _named(request.layer, layers) if request.layer else worst(layers, marked)
    if request.layers is not None:
        LayerTable(tuple(layers)).write(request.layers)
    if request.plot is not None:
        _draw(request.plot, layers, chosen)
    for form, path in request.places:
        options: Any = {"color": request.color, "verbose": request.verbose, "fail_on": request.config.fail_on}
        write_report(report, form, path, stdout, **options)
        if form == "text" and path == "-" and layers:
            page = Page(stdout, request.color)
            first, other, moved, second = compared
            print_layers(page, layers, marked, full=request.verbose)
            if chosen is not None:
                print_spectrum(page, chosen)
            if other is not None and moved is not None:
                names = (first.name, other.name)
                print_comparison(page, moved, names, layers, second, full=request.verbose)
            page.show()


def _marked(report: Report) -> dict[str, str]:
    """The gravest level by parameter."""
    found = sorted(
        (finding for result in report.results for finding in result.active),
        key=lambda finding: finding.level == "fail",
    )
    return {finding.where: finding.level for finding in found if finding.where}


def _named(name: str, layers: Sequence[LayerSpectrum]) -> LayerSpectrum:
    """The layer of a name, its end, or its beginning without ``.weight``; of several the first."""
    names = {f"{layer.parameter} {layer.part}".strip(): layer for layer in layers}
    if name in names:
        return names[name]
    for layer in layers:
        whole = f".{layer.parameter}"
        if whole.endswith((f".{name}", f".{name}.weight")):
            return layer
    raise UsageError(f"there is no layer `{name}`{nearest(name, names)}")


def _draw(path: str, layers: Sequence[LayerSpectrum], chosen: LayerSpectrum | None) -> None:
    from debugkit.render.layers_svg import svg

    try:
        Path(path).write_text(svg(layers, chosen), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"`--plot {path}` can't be written: {error.strerror}") from error


class _Bar:
    """How many matrices are done and the time left, on a terminal."""

    def __init__(self, file: TextIO, *, quiet: bool) -> None:
        self._file = file
        self._shown = not quiet and is_terminal(file)
        self._open = False

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open:
            self._file.write("\r\x1b[K")
            self._file.flush()

    def __call__(self, progress: Progress) -> None:
        if not self._shown:
            return
        self._open = True
        left = f"{progress.seconds_left:.0f} s left"
        self._file.write(f"\r\x1b[K{progress.done} of {progress.total} matrices · {left}")
        self._file.flush()
