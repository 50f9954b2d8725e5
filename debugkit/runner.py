"""The runner: plans checks cheapest first, collects their evidence, turns findings into results."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from debugkit import __version__
from debugkit.check import Check
from debugkit.config import Baseline, Config
from debugkit.errors import Broken, Unavailable, UsageError, nearest, one_line, with_article
from debugkit.evidence import COSTS, Deadline, Kind, Ledger, buildable, cost_of, is_root
from debugkit.finding import Finding
from debugkit.registry import Registry, load
from debugkit.report import Report, Result, Status, gravest
from debugkit.target import Target

if TYPE_CHECKING:
    from debugkit.sandbox import Sandbox

Event = Literal["plan", "evidence", "check", "crash", "done"]
OnEvent = Callable[[Event, Any], object]


def _silent(event: Event, value: Any) -> None:
    """No progress."""


def run(
    target: Target,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    config: str | Path | Mapping[str, Any] | Config | None = None,
) -> Report:
    """Run the checklist against a target and report; never raises for a finding.

    Args:
        target: what will be trained.
        select: ids, families or globs of the checks to run; all by default.
        ignore: ids, families or globs to leave out.
        config: a ``pyproject.toml``, a mapping with its keys, or ``None`` for the nearest one upwards from
            the working directory.

    Returns:
        The report. Afterwards model, optimizer, random generators and loaders are as before.

    Raises:
        UsageError: the request is not valid: an unknown check, option or key, or no Target.
        KeyboardInterrupt: passed on after everything has been restored.
    """
    report = Run(target, select=select, ignore=ignore, config=config).execute()
    if report.interrupted:
        raise KeyboardInterrupt
    return report


class Run:
    """One run over one target; :meth:`execute` judges the whole plan, :meth:`judge` a single check.

    Planned are the checks whose evidence can be built from what the moment hands over.

    Args:
        target: what will be trained, or another root (see :func:`debugkit.evidence.root`) that has a ``name``.
        select: as for :func:`run`.
        ignore: as for :func:`run`.
        config: as for :func:`run`.
        settings: ``ID.option=value`` strings.
        baseline: findings that do not count again.
        registry: the checks to choose from; found by default.
        on_event: told of the plan, of each evidence kind and check begun, and of each result.
        keep: kinds of evidence that :meth:`evidence` will be asked for after the run.
    """

    def __init__(
        self,
        target: Any,
        *,
        select: Iterable[str] | str | None = None,
        ignore: Iterable[str] | str | None = None,
        config: str | Path | Mapping[str, Any] | Config | None = None,
        settings: Iterable[str] = (),
        baseline: Baseline | None = None,
        registry: Registry | None = None,
        on_event: OnEvent = _silent,
        keep: Iterable[Kind] = (),
    ) -> None:
        if not (isinstance(target, Target) or is_root(type(target))):
            raise UsageError(f"expected a `debugkit.Target`, not {with_article(type(target).__name__)}")
        self.target = target
        self.config = Config.read(config)
        self._registry = registry if registry is not None else load(self.config.load)
        self._options, self._evidence_options = self.config.options(self._registry, settings)
        self._baseline = baseline
        self._on_event = on_event
        self._keep = tuple(keep)
        self._used_suppressions: set[int] = set()
        self._results: dict[str, Result] = {}
        self._deadline = Deadline(self.config.budget)
        self._sandbox: Sandbox | None = None
        given: dict[type[object], Any] = {type(target): target, Deadline: self._deadline}
        if isinstance(target, Target):
            from debugkit.sandbox import Sandbox

            self._sandbox = Sandbox(target, seed=self.config.seed)
            given |= {Target: target, Sandbox: self._sandbox}
        self._roots = frozenset(given)
        ignored = self._ignored()
        chosen = self.choose(select, ignore)
        self.ignored = {check: ignored[check.id] for check in chosen if check.id in ignored}
        self.plan = [check for check in chosen if check.id not in ignored]
        self._waiting = list(self.plan)
        self._ledger = self._new_ledger(given)

    def _new_ledger(self, given: Mapping[type[object], Any]) -> Ledger:
        return Ledger(
            given,
            self._evidence_options,
            self.config.max_cost,
            on_collect=lambda name: self._on_event("evidence", name),
        )

    def again(self, target: Any) -> Run:
        """A run of the same plan over another root of the same kind, which is no Target: cheap to begin."""
        other = copy.copy(self)
        other.target = target
        other._used_suppressions, other._results = set(), {}
        other._waiting = list(self.plan)
        other._deadline = Deadline(self.config.budget)
        other._ledger = other._new_ledger({type(target): target, Deadline: other._deadline})
        return other

    def execute(self) -> Report:
        """Judge every planned check. Ctrl-C ends the run early and marks the report."""
        start = time.perf_counter()
        interrupted = False
        self._on_event("plan", len(self.plan))
        try:
            with self._sandbox or nullcontext():
                try:
                    for check in self.plan:
                        self._on_event("check", check.id)
                        self._results[check.id] = self._judge(check)
                        self._on_event("done", self._results[check.id])
                        self._forget(check)
                finally:
                    self.close()
        except KeyboardInterrupt:
            interrupted = True
        return self.report(interrupted=interrupted, seconds=time.perf_counter() - start)

    def choose(
        self, select: Iterable[str] | str | None = None, ignore: Iterable[str] | str | None = None
    ) -> list[Check]:
        """The affordable checks of this moment that a selection names, cheapest first, with those ignored."""
        chosen = self._registry.match(_names(select) or self.config.select)
        chosen -= self._registry.match(_names(ignore))
        checks = [self._registry[name] for name in chosen]
        checks = [check for check in checks if buildable(check.signature, self._roots)]
        affordable = COSTS.index(self.config.max_cost)
        checks = [check for check in checks if COSTS.index(check.cost) <= affordable]
        return sorted(checks, key=lambda check: (COSTS.index(cost_of(check.reads)), check.family, check.id))

    def judge(self, check_id: str) -> Result:
        """Judge one check in a sandbox of its own; evidence is shared with other calls."""
        check = self._registry[check_id]
        if (reason := self._ignored().get(check_id)) is not None:
            return _ignored_result(check, reason)
        with self._sandbox or nullcontext():
            result = self._judge(check)
            self._forget(check)
        self._results[check_id] = result
        return result

    def close(self) -> None:
        """Release all evidence but what is kept."""
        self._ledger.release(self._keep)

    def evidence(self, kind: Kind) -> Any:
        """A kept kind of evidence, measured now if no check has asked for it.

        Raises:
            Unavailable: this target can't give it.
            Broken: the user's program raised while it was measured.
        """
        return self._ledger.get(kind)

    def report(self, *, interrupted: bool = False, seconds: float = 0.0) -> Report:
        """The report of what has been judged so far."""
        results = [*self._results.values()]
        if interrupted:
            results += [
                Result(
                    check=check.id,
                    family=check.family,
                    status="skip",
                    reason="interrupted before it was judged",
                )
                for check in self.plan
                if check.id not in self._results
            ]
        results += [_ignored_result(check, reason) for check, reason in self.ignored.items()]
        return Report(
            debugkit_version=__version__,
            target=_name(self.target),
            seed=self.config.seed,
            seconds=seconds,
            interrupted=interrupted,
            notices=tuple(self._notices()),
            evidence_seconds=dict(self._ledger.seconds),
            results=tuple(sorted(results, key=lambda result: (result.family, result.check))),
        )

    def _ignored(self) -> dict[str, str]:
        """The reason for each check that the configuration ignores."""
        return {
            name: reason
            for pattern, reason in self.config.ignore.items()
            for name in self._registry.match([pattern])
        }

    def _forget(self, judged: Check) -> None:
        """Release the evidence that no check still waiting needs."""
        self._waiting = [check for check in self._waiting if check is not judged]
        needed = [need.kind for check in self._waiting for need in check.signature.needs]
        self._ledger.release([*needed, *self._keep])

    def _judge(self, check: Check) -> Result:
        start = time.perf_counter()
        findings: list[Finding] = []
        reason: str | None = None
        status: Status | None = None
        if not self._deadline.seconds_left:
            status, reason = "skip", f"the budget of {self.config.budget:g} s was used up"
        else:
            at_work = "a measurement"
            try:
                arguments = self._ledger.arguments(check.signature)
                at_work = "the check"
                options = check.signature.values(self._options[check.id])
                for finding in check.function(*arguments, **options):
                    if not isinstance(finding, Finding):
                        raise TypeError(
                            f"it yielded {with_article(type(finding).__name__)}, which is no finding"
                        )
                    findings.append(finding)
            except Unavailable as refusal:
                status, reason = "skip", str(refusal)
            except Broken as error:
                status, reason = "error", str(error)
                self._on_event("crash", error)
            except Exception as error:
                status, reason = "error", f"{at_work} crashed: {one_line(error)}"
                self._on_event("crash", error)
            except (SystemExit, GeneratorExit) as error:
                status, reason = "error", f"{at_work} tried to end the program: {one_line(error)}"
                self._on_event("crash", error)
        result = Result(
            check=check.id,
            family=check.family,
            status=status or "pass",
            reason=reason,
            findings=tuple(findings),
            seconds=time.perf_counter() - start,
        )
        result = self.config.suppressed(result, self._used_suppressions)
        if self._baseline is not None:
            result = self._baseline.suppressed(result)
        if status is None:
            levels = [finding.level for finding in result.active]
            verdict = gravest(level for level in levels if level != "note") if levels else "pass"
            result = result.model_copy(update={"status": verdict})
        return result

    def _notices(self) -> Iterable[str]:
        for index, suppression in enumerate(self.config.suppress):
            result = self._results.get(suppression.check)
            if suppression.check not in self._registry:
                hint = nearest(suppression.check, self._registry)
                yield f"a suppression names the check `{suppression.check}`, which does not exist{hint}"
            elif (
                index not in self._used_suppressions
                and result is not None
                and result.status not in ("skip", "error")
            ):
                yield f"the suppression of `{suppression.check}` at `{suppression.where}` matches nothing: remove it"
        if self._sandbox is not None:
            yield from self._sandbox.notices


def _name(target: Any) -> str:
    return str(target.name or type(getattr(target, "model", target)).__name__)


def _ignored_result(check: Check, reason: str) -> Result:
    return Result(check=check.id, family=check.family, status="skip", reason=f"ignored: {reason}")


def _names(value: Iterable[str] | str | None) -> list[str]:
    if value is None:
        return []
    names = [value] if isinstance(value, str) else list(value)
    return [part.strip() for name in names for part in name.split(",") if part.strip()]
