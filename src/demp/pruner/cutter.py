"""One cut of a run: what the method selects, what copies of the model still need, the proof and its report."""

from copy import deepcopy

from demp.activity import Detection, ranked
from demp.errors import DempError
from demp.methods.base import Selection
from demp.pruner.model import CutRequest
from demp.pruner.run import PruningRun
from demp.pruner.sparing import Sparing, warn_of_changes
from demp.pruner.strictness import constant_rules, is_exact
from demp.pruner.summary import show
from demp.pruner.validation import left_out
from demp.pruner.view import LiveView, last_check
from demp.regularization.targets import LiveNeurons
from demp.surgery import CutReport, VerifyOptions


class Cutter:
    """Carries out what the method selects."""

    def __init__(
        self, run: PruningRun, view: LiveView, live: LiveNeurons, alive_in_copies: str, *, shows_cuts: bool
    ) -> None:
        self._run, self._view, self._live = run, view, live
        self._sparing, self._shows_cuts = Sparing(alive_in_copies), shows_cuts

    def cut(self, *, final: bool, notes: tuple[str, ...] = ()) -> CutReport:
        """One selection and its cut; if that fails, the method has not selected. The report gets ``notes``, too."""
        method = self._run.method
        before = deepcopy(method.state_dict())
        try:
            return self._select_and_cut(final, notes)
        except DempError:
            method.load_state_dict(before)
            raise

    def nothing(self) -> None:
        """A report of the final check, which was made before a restart."""
        run = self._run
        notes = ("made before the restart",)
        proof = VerifyOptions(run.detector.proof())
        run.shrinking.cut(CutRequest({}, run.config.limits(), proof, run.step, notes=notes))

    def _select_and_cut(self, final: bool, notes: tuple[str, ...]) -> CutReport:
        run, shrinking = self._run, self._run.shrinking
        selection, detection = self._select(final)
        self._live.checked((detection or Detection(selection.neurons, 0, 0)).dead)
        neurons, of_copies = selection.neurons, ()
        if detection is not None and selection.exact is None:
            spared = self._sparing.spared
            neurons, of_copies = spared(run.detector, shrinking, neurons, step=run.step, final=final)
        notes = (*of_copies, *self._notes(selection, detection), *notes)
        rules = constant_rules(run.method, run.requirements, shrinking.graph, selection)
        if rules is not None and detection is None:
            with shrinking.context.together():
                run.detector.draw(run.step)
        deviations = None if detection is None else detection.deviations
        request = CutRequest(
            neurons,
            run.config.limits(),
            VerifyOptions(
                run.detector.proof(),
                is_exact(run.method, shrinking.graph, selection),
                constants=rules,
                held_out=None if rules is None else run.detector.held_out(),
            ),
            run.step,
            ranking=ranked(shrinking.graph, deviations) if deviations else None,
            judged=self._view.judged,
            notes=notes,
        )
        report = shrinking.cut(request)
        self._view.forget()
        self._show(report, selection)
        return report

    def _select(self, final: bool) -> tuple[Selection, Detection | None]:
        """Which neurons go, and the detection behind it if the method asked for one."""
        run, view = self._run, self._view
        view.forget()
        if not final:
            return run.method.select(run.step, view), view.found
        with last_check(view):
            return run.method.select(run.step, view), view.found

    def _notes(self, selection: Selection, detection: Detection | None) -> tuple[str, ...]:
        """What the report must say of the method, of the detection, and of optimizers that are not the pruner's."""
        run, shrinking = self._run, self._run.shrinking
        notes = (*selection.notes, *([selection.advice] if selection.advice else []))
        notes += () if detection is None else run.detector.notes(detection)
        optimizers = (*shrinking.optimizers, *shrinking.others())
        return notes + run.others.notes(left_out(shrinking.model, shrinking.graph, optimizers))

    def _show(self, report: CutReport, selection: Selection) -> None:
        context = self._run.shrinking.context
        warn_of_changes(report, context)
        if context.is_main_process:
            show(report, selection.advice, bool(selection.notes), on_stderr=self._shows_cuts)
