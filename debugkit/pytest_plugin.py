"""The pytest plugin: one test per check of a target, and the fixture ``debugkit_check``.

Every pytest run of the environment loads this file, so torch is imported only when a target is checked.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from debugkit.console.spec import Spec, load_target
from debugkit.console.terminal import printable
from debugkit.errors import DebugkitWarning, UsageError, nearest
from debugkit.tracing.source import shorten

if TYPE_CHECKING:
    from debugkit.report import Report, Result
    from debugkit.runner import Run
    from debugkit.target import Target

PREFIX = "debugkit::"

T = TypeVar("T")

_CHOSEN = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--debugkit`` and ``debugkit_targets``."""
    group = parser.getgroup("debugkit", "debugkit, a linter for training runs")
    group.addoption(
        "--debugkit",
        action="append",
        default=[],
        metavar="SPEC",
        help="Collect one test per check for the target at SPEC: file.py[:attr] or package.module[:attr]. "
        "Repeatable.",
    )
    parser.addini(
        "debugkit_targets",
        type="linelist",
        help="SPECs, one per line, as for --debugkit, unless the command line names single files or tests.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that selects the checks: ``-m debugkit``."""
    config.addinivalue_line("markers", "debugkit: one check of the debugkit checklist")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Take node ids such as ``debugkit::train.py::label-balance`` off the arguments: they name no file."""
    config = session.config
    chosen = [arg for arg in config.args if arg.startswith(PREFIX)]
    config.args = [arg for arg in config.args if arg not in chosen]
    session.stash[_CHOSEN] = chosen
    if not hasattr(config, "workerinput"):
        for spec in _specs(session):
            _usage(Spec.parse, _located(spec, config))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the checklists to what the session collects."""
    report = yield
    if isinstance(collector, pytest.Session):
        checklists = [Checklist.from_parent(collector, name=spec) for spec in _specs(collector)]
        if not hasattr(collector.config, "workerinput"):
            for checklist in checklists:
                checklist.load()
        report.result = [*report.result, *checklists]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Place the skip of a check at its target instead of in this file."""
    report = yield
    if isinstance(item, CheckTest) and report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(item.path), None, report.longrepr[2])  # type: ignore[assignment]
    return report


class Checklist(pytest.Collector):
    """The checks of one target. Its evidence lives from its first test to its last."""

    def __init__(self, name: str, parent: pytest.Session, **kwargs: Any) -> None:
        path = parent.config.rootpath / _split(name)[0]
        super().__init__(
            name,
            parent,
            nodeid=PREFIX + name.replace("[", "("),
            path=path if path.is_file() else parent.path,
            **kwargs,
        )
        self.add_marker("debugkit")
        self.crash: Exception | None = None
        self._target: Target | None = None
        self._run: Run | None = None

    def load(self) -> list[str]:
        """Load the target and name its checks, sorted.

        Raises:
            pytest.UsageError: SPEC gives no target, or the configuration is not valid.
        """
        if self._target is None:
            self._target = _usage(load_target, _located(self.name, self.config))
        names = sorted(check.id for check in _usage(self._begin).choose())
        chosen = [
            arg.removeprefix(self.nodeid).removeprefix("::")
            for arg in self.session.stash[_CHOSEN]
            if f"{arg}::".startswith(f"{self.nodeid}::")
        ]
        for name in chosen:
            if name and name not in names:
                raise pytest.UsageError(f"debugkit: no check is called `{name}`{nearest(name, names)}")
        return names if "" in chosen else chosen or names

    def collect(self) -> Iterator[CheckTest]:
        """One test per check."""
        try:
            names = self.load()
        except pytest.UsageError as error:
            raise self.CollectError(str(error)) from None
        for name in sorted(set(names)):
            yield CheckTest.from_parent(self, name=name)

    @property
    def run(self) -> Run:
        """The run that the tests share."""
        if self._run is None:
            self._run = self._begin()
        return self._run

    def teardown(self) -> None:
        """Release the evidence after the last test."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def _begin(self) -> Run:
        from debugkit.runner import Run

        assert self._target is not None
        return Run(self._target, on_event=self._remember_crash)

    def _remember_crash(self, event: str, value: Any) -> None:
        if event == "crash":
            self.crash = value


class CheckTest(pytest.Item):
    """One check of one target."""

    parent: Checklist

    def runtest(self) -> None:
        """Judge the check: fail or error raise, a skip skips, a warning warns."""
        result = _judge(self.parent.run, self.name)
        _record(self, [result])
        if result.status in ("fail", "error"):
            raise _Failed(result)
        if result.status == "skip":
            pytest.skip(printable(result.reason or ""))
        if result.status == "warn":
            self.warn(DebugkitWarning(_words(result)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The report's words; with ``-v`` also where a check crashed."""
        if isinstance(excinfo.value, DebugkitWarning):
            return str(excinfo.value)
        if not isinstance(excinfo.value, _Failed):
            return super().repr_failure(excinfo, style)
        words = _words(excinfo.value.result)
        crash = self.parent.crash
        if excinfo.value.result.status == "error" and crash is not None and self.config.get_verbosity() > 0:
            words += "\n\n" + "".join(traceback.format_exception(crash))
        return words

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The target's file."""
        return self.path, 0, self.name


class _Failed(Exception):  # noqa: N818 - a verdict
    """Carries a fail or error to the test's report."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.check}: {result.status}")
        self.result = result


@pytest.fixture
def debugkit_target() -> Target:
    """The ``debugkit.Target`` that ``debugkit_check`` checks: define a fixture of this name that returns it."""
    pytest.fail("define a fixture `debugkit_target` that returns a `debugkit.Target`", pytrace=False)


@pytest.fixture(scope="session")
def _debugkit_run_of() -> Iterator[Callable[[Target], Run]]:
    """Give each target one run; the one before is closed, so that no two targets' evidence is in memory."""
    from debugkit.runner import Run

    latest: list[Run] = []

    def run_of(target: Target) -> Run:
        if not latest or latest[0].target is not target:
            begun = Run(target)
            close()
            latest.append(begun)
        return latest[0]

    def close() -> None:
        while latest:
            latest.pop().close()

    yield run_of
    close()


@pytest.fixture
def debugkit_check(
    request: pytest.FixtureRequest,
    debugkit_target: Target,
    _debugkit_run_of: Callable[[Target], Run],
) -> Callable[..., Report]:
    """Check ``debugkit_target``: ``debugkit_check(select=None, ignore=None)`` fails as the checklist does.

    ``select`` and ``ignore`` take ids, families or globs; the report is returned.
    """

    def check(select: Iterable[str] | str | None = None, ignore: Iterable[str] | str | None = None) -> Report:
        __tracebackhide__ = True
        try:
            run = _debugkit_run_of(debugkit_target)
            chosen = run.choose(select, ignore)
        except UsageError as error:
            pytest.fail(f"debugkit: {printable(str(error))}", pytrace=False)
        results = [_judge(run, check.id) for check in chosen]
        _record(request.node, results)
        warned = [result for result in results if result.status == "warn"]
        failed = [result for result in results if result.status in ("fail", "error")]
        if failed:
            pytest.fail("\n\n".join(map(_words, [*failed, *warned])), pytrace=False)
        for result in warned:
            warnings.warn(DebugkitWarning(_words(result)), stacklevel=2)
        if all(result.status == "skip" for result in results):
            reasons = dict.fromkeys(printable(result.reason or "") for result in results)
            pytest.skip(f"nothing was checked: {'; '.join(reasons) or 'no check is selected'}")
        return run.report().model_copy(
            update={"results": tuple(sorted(results, key=lambda result: (result.family, result.check)))}
        )

    return check


def _specs(session: pytest.Session) -> list[str]:
    """The SPECs to collect, as node ids show them."""
    config, chosen = session.config, session.stash[_CHOSEN]
    shown = {_shown(spec, config.invocation_params.dir, config) for spec in config.getoption("debugkit")}
    if chosen:
        shown = {arg.removeprefix(PREFIX).partition("::")[0] for arg in chosen}
    elif config.args_source is not config.ArgsSource.ARGS or any(Path(arg).is_dir() for arg in config.args):
        folder = config.inipath.parent if config.inipath else config.rootpath
        shown |= {_shown(spec, folder, config) for spec in config.getini("debugkit_targets")}
    return sorted(shown)


def _shown(spec: str, folder: Path, config: pytest.Config) -> str:
    """The SPEC with its file relative to the root folder: the same wherever pytest is started."""
    file, _, attribute = _split(spec)
    path = (folder / file).resolve()
    root = config.rootpath.resolve()
    if not path.is_file():
        return spec
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return shown.as_posix() + (f":{attribute}" if attribute else "")


def _located(shown: str, config: pytest.Config) -> str:
    """The SPEC that :func:`_shown` made, for the present working directory."""
    file, _, attribute = _split(shown)
    path = config.rootpath / file
    if not path.is_file():
        return shown
    return shorten(str(path)) + (f":{attribute}" if attribute else "")


def _split(spec: str) -> tuple[str, str, str]:
    file, colon, attribute = spec.rpartition(":")
    return (file, colon, attribute) if file.endswith(".py") else (spec, "", "")


def _usage(function: Callable[..., T], *args: Any) -> T:
    try:
        return function(*args)
    except UsageError as error:
        raise pytest.UsageError(f"debugkit: {printable(str(error))}") from None


def _judge(run: Run, check_id: str) -> Result:
    """Judge a check. Verdicts do not depend on the warning filters of the test run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run.judge(check_id)


def _record(node: pytest.Item, results: Iterable[Result]) -> None:
    """Put verdicts where JUnit and the controller of a distributed run find them."""
    for result in results:
        node.user_properties.append((f"debugkit.{result.check}", result.status))
        node.user_properties.append((f"debugkit.{result.check}.result", result.model_dump_json()))


def _words(result: Result) -> str:
    if result.status == "error":
        return f"{result.check} could not be completed: {printable(result.reason or '')}"
    lines = []
    for finding in sorted(result.active, key=lambda finding: finding.level != "fail"):
        verb = "failed" if finding.level == "fail" else "warned"
        lines.append(f"{result.check} {verb}: {printable(finding.message)}")
        places = [printable(place) for place in (finding.location, finding.where) if place]
        if places:
            lines.append(f"    at {', '.join(places)}")
        if finding.hint:
            lines.append(f"    hint: {printable(finding.hint)}")
    return "\n".join(lines)
