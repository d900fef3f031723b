"""What a reader learns in the first second: a sentence of numbers, and the numbers one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

from demp.experiments.report.comparable import ComparableRuns
from demp.experiments.report.groups import POINT, Dense, RunGroup, accuracy, best, plain, share, tested
from demp.experiments.report.runs import UNFINISHED, ReportedRun, before, part
from demp.experiments.report.studies import SMOKE, StudySummary
from demp.experiments.report.words import change, digits, duration, listed, percent, plural, points, short, times
from demp.files.results import DONE, FAILED
from demp.files.run import DENSE

WHAT_TO_TRY = "To remove some: name what may be left (--budget flops=0.4), raise --strength, or train for longer."
"""Below a page where nothing went."""


@dataclass(frozen=True)
class Number:
    """One of the large numbers."""

    value: str
    words: str
    detail: str = ""


@dataclass(frozen=True)
class Headline:
    """Title, what it is of, and its numbers."""

    title: str
    subject: str
    numbers: tuple[Number, ...]


def headline(runs: list[ReportedRun], studies: list[StudySummary], families: list[ComparableRuns]) -> Headline:
    """Of studies, of what is under way, or of the best setting of the largest set of comparable runs."""
    if any(study.claims for study in studies):
        return of_claims(studies, runs)
    running = [run for run in runs if run.status == UNFINISHED]
    if running and not any(run.status == DONE for run in runs):
        return of_running(running)
    for family in families:
        chosen = best(family.groups, family.dense)
        if chosen is not None:
            return of_group(chosen, family.groups, family.dense)
    return of_counts(runs) if runs else of_tables(studies)


def of_group(group: RunGroup, groups: list[RunGroup], dense: Dense) -> Headline:
    """Return the headline that compares one method and setting with dense runs."""
    parameters, flops = group.mean(share("parameters")), group.mean(share("flops"))
    reached, step = group.mean(accuracy), group.mean(dense.step_ratio)
    gain = None if dense.accuracy is None or reached is None else reached - dense.accuracy
    ratio, what = (step, "training step") if step is not None else late_step(group)
    first = group.done[0]
    split = first.outcome.get("split", "test")
    nothing = nothing_removed(group)
    parts = [f"{change(parameters)} parameters"] if parameters is not None else []
    parts = ["Nothing was removed"] if nothing else parts
    parts += [points(gain, tested(group)) if gain is not None else f"{percent(reached)} accuracy"]
    parts += [f"step {times(ratio)}"] if ratio is not None else []
    spread = f"± {percent(std, 2)}; " if (std := group.std(accuracy)) is not None else ""
    beside = (
        f"dense {percent(dense.accuracy)}, {points(gain, tested(group))}"
        if gain is not None
        else "no dense run beside it"
    )
    numbers = [
        Number(change(parameters), "parameters", counts(first, "parameters")),
        Number(change(flops), "FLOPs per image", counts(first, "flops")),
        Number(percent(reached), f"{split} accuracy", spread + beside),
        Number(times(group.mean(share("train_flops"))), "training FLOPs", "of dense's, checks and scorings included"),
        Number(times(ratio), what, timed(group, dense)),
    ]
    others = sum(one.method != DENSE for one in groups)
    which = f"{group.name}" + (f": {chosen_because(group, dense)} of {plural(others, 'setting')}" if others > 1 else "")
    seeds = f", {plural(len(group.done), 'seed')}" if len(group.done) > 1 else ""
    subject = f"{which}{seeds}. {setup(first)}" + (f" {WHAT_TO_TRY}" if nothing else "")
    return Headline(", ".join(parts), subject, tuple(n for n in numbers if n.value != "–"))


def nothing_removed(group: RunGroup) -> bool:
    """Does the network of every seed have all the weights of the dense one, and no mask?"""
    kept, masked = group.values(share("parameters")), group.values(plain("masked_share"))
    return bool(kept) and min(kept) == 1 and not any(masked)


def chosen_because(group: RunGroup, dense: Dense) -> str:
    """Why this setting is the headline."""
    reached = group.mean(accuracy)
    if dense.accuracy is not None and reached is not None and reached >= dense.accuracy - POINT:
        return "the smallest within one point of dense"
    return "the most accurate"


def late_step(group: RunGroup) -> tuple[float | None, str]:
    """Without a dense run: a step at the end over one before anything was removed, in the same run."""
    ratios = []
    for run in group.done:
        first = next((cut.step for cut in run.cuts if cut.removed), 0)
        early = before(run.series.get("time/step_ms", []), first)
        late = run.series.get("time/step_ms", [])[-1:]
        if early and late:
            ratios.append(late[0].value / early)
    words = "training step"
    return (sum(ratios) / len(ratios), words) if ratios else (None, words)


def timed(group: RunGroup, dense: Dense) -> str:
    """A phrase that says how the step time was measured."""
    if any(run.value("step_over_dense") for run in group.done):
        return "of dense's, side by side in turns"
    return (
        "of dense's, late in both runs"
        if group.mean(dense.step_ratio) is not None
        else "at the end, of that before the first cut"
    )


def counts(run: ReportedRun, name: str) -> str:
    """A number before and after pruning, such as 2.8 M → 351 k; empty if one is not known."""
    now, dense = run.value(name), run.value(f"{name}_dense")
    return f"{short(dense)} → {short(now)}" if now is not None and dense is not None else ""


def setup(run: ReportedRun) -> str:
    """Return a phrase that names model, data set and number of steps."""
    words = " on ".join(name for name in (part(run, "model"), part(run, "data")) if name)
    return ", ".join(one for one in (words, plural(run.steps, "step") if run.steps else "") if one) + "."


def of_running(running: list[ReportedRun]) -> Headline:
    """Return the headline for runs that are still under way."""
    run = running[0]
    parameters, more = run.share("parameters"), len(running) - 1
    title = f"Step {digits(run.step, 0)} of {digits(run.steps, 0)}"
    title += f": {change(parameters)} parameters so far" if parameters is not None else ""
    rest = max(0, run.steps - run.step) * ((run.value("train_seconds") or 0) / run.step if run.step else 0)
    numbers = (
        Number(percent(run.step / run.steps if run.steps else None, 0), "of the steps", f"about {duration(rest)} left"),
        Number(change(parameters), "parameters so far", counts(run, "parameters")),
        Number(change(run.share("flops")), "FLOPs per image so far", counts(run, "flops")),
        Number(percent(accuracy(run)), "accuracy at the last test"),
    )
    others = f", and {plural(more, 'other run')} under way" if more else ""
    return Headline(title, f"{run.name}{others}. {setup(run)}", tuple(n for n in numbers if n.value != "–"))


def of_claims(studies: list[StudySummary], runs: list[ReportedRun]) -> Headline:
    """How many claims hold, how many are undecided, and what they were tested on; at scale smoke none is tested."""
    claims = [claim for study in studies for claim in study.claims]
    verdicts = [claim.holds for claim in claims]
    undecided = verdicts.count(None)
    title = f"{verdicts.count(True)} of {plural(len(claims), 'claim')} {'holds' if len(claims) == 1 else 'hold'}"
    title += f", {undecided} undecided" if undecided else ""
    numbers = (
        Number(str(verdicts.count(True)), "hold in our runs"),
        Number(str(verdicts.count(False)), "do not hold"),
        Number(str(undecided), "undecided", "our runs do not say"),
    )
    if all(study.scale == SMOKE for study in studies):
        title = f"A smoke test: {plural(len(claims), 'claim')} not tested"
        numbers = (Number(str(len(claims)), "claims not tested", "the runs are too short to say anything"),)
    first = studies[0]
    facts = (first.title or first.id, first.section, first.runs) if len(studies) == 1 else (f"{len(studies)} studies",)
    about = ", ".join(fact for fact in (*facts, *conditions(studies, runs)) if fact)
    return Headline(title, f"{about}.", numbers)


def conditions(studies: list[StudySummary], runs: list[ReportedRun]) -> Iterator[str]:
    """Scale, widths and seeds of what the claims were tested on, as far as the files say."""
    scales = list(dict.fromkeys(study.scale for study in studies if study.scale))
    if scales:
        yield f"{listed(scales)} scale"
    widths = sorted({width for run in runs if (width := run.width) is not None})
    if widths:
        yield f"width {listed([f'{width:g}' for width in widths])}"
    seeds = {run.seed for run in runs if run.method != DENSE and run.status == DONE}
    if seeds:
        yield plural(len(seeds), "seed")


def of_tables(studies: list[StudySummary]) -> Headline:
    """Return a headline of the studies' titles, where there are no runs."""
    return Headline(", ".join(study.title or study.id for study in studies), studies[0].section, ())


def of_counts(runs: list[ReportedRun]) -> Headline:
    """Where there is nothing to compare."""
    done, failed = (sum(run.status == kind for run in runs) for kind in (DONE, FAILED))
    top = max((value for run in runs if (value := accuracy(run)) is not None), default=None)
    title = f"{plural(done, 'run')} done" + (f", {failed} failed" if failed else "")
    if done == len(runs) == 1 and top is not None:
        title = f"{percent(top)} accuracy"
    numbers = [Number(str(done), "runs done"), Number(str(failed), "failed")] if failed or done > 1 else []
    numbers += [Number(percent(top), "accuracy" if done == 1 else "highest accuracy")] if top is not None else []
    subject = setup(runs[0]) if runs else ""
    return Headline(title, subject if subject != "." else "", tuple(numbers))
