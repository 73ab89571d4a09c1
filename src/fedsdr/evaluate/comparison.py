"""Which differences between methods hold up over seeds, in words.

Runs are paired by seed: a seed fixes world, partition and start for every method, so what differs
within a pair is the method. The contrasts are named before anything is looked at; both p-values of
each (paired t, sign-flip) are Holm-adjusted over all of them, and a difference holds up only when
both adjusted p are below .05. The 95 % intervals stand each on its own, unadjusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from fedsdr.errors import RecipeError, nearest
from fedsdr.evaluate.statistics import (
    Summary,
    holm,
    paired_t,
    sign_flip,
    smallest_sign_flip,
    summarise,
)
from fedsdr.evaluate.verdicts import ALPHA, Contrast, Finding, counted

BASELINE = "fedavg"
DEFAULT_MEASURES = ("recall", "retention", "hallucination", "redundancy")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run's final scores. `world` is a digest of what the seed must fix: data and partition."""

    path: str
    method: str
    seed: int
    world: str
    lr: float
    scores: Mapping[str, Mapping[str, float]]  # mix -> measure -> value
    base: str = ""  # the base model's digest, where it is known


@dataclass(frozen=True, slots=True)
class Row:
    method: str
    mix: str
    n: int
    summaries: Mapping[str, Summary]  # by measure; one that no run of this row has is absent


@dataclass(frozen=True, slots=True)
class Comparison:
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The same as plain values, ready for `json.dumps`."""
        contrasts = [
            {**asdict(f), "holds_up": f.holds_up, "verdict": f.verdict} for f in self.findings
        ]
        return {
            "measures": list(self.measures),
            "rows": [asdict(row) for row in self.rows],
            "contrasts": contrasts,
            "notes": list(self.notes),
        }


def compare(
    results: Sequence[RunResult], contrasts: Sequence[Contrast], measures: Sequence[str]
) -> Comparison:
    """The table over seeds of every deployed mix, and what came out of each contrast.

    Args:
        results: Of `read_results`.
        contrasts: What is claimed to be better than what.
        measures: The table's columns.
    """
    _check_runs(results)
    _check_contrasts(contrasts)
    known = {m for run in results for scores in run.scores.values() for m in scores}
    for measure in measures:
        if measure not in known:
            raise _unknown("measure", measure, known)
    sides = dict.fromkeys((run.method, mix) for run in results for mix in run.scores)
    return Comparison(
        measures=tuple(measures),
        rows=tuple(_row(results, method, mix, measures) for method, mix in sides),
        findings=_findings(results, contrasts),
        notes=tuple(_notes(results)),
    )


def default_contrasts(
    results: Sequence[RunResult], measures: Sequence[str] = DEFAULT_MEASURES
) -> list[Contrast]:
    """Every method's global model, and FedSDR's personal one, against FedAvg's global model.

    Without FedAvg the first method given takes its place. Methods and measures come in the order
    given; a model or measure that no run has is passed over.
    """
    methods = list(dict.fromkeys(run.method for run in results))
    if not methods:
        return []
    baseline = f"{BASELINE if BASELINE in methods else methods[0]}:global"
    mixes = {"fedsdr": ("global", "personal")}
    lefts = [f"{method}:{mix}" for method in methods for mix in mixes.get(method, ("global",))]
    return [
        Contrast(left, baseline, measure)
        for left in lefts
        for measure in measures
        if left != baseline and all(_by_seed(results, s, measure) for s in (left, baseline))
    ]


def render_text(comparison: Comparison) -> str:
    """One verdict a line, after what the reader must know to weigh them."""
    findings, lines = comparison.findings, list[str]()
    contrasts = counted(len(findings), "contrast")
    if findings:
        lines.append(
            f"Runs are paired by seed; {contrasts} tested. The p-values are Holm-adjusted over all "
            "contrasts; the 95 % intervals in brackets are not."
        )
    if findings and all(f.hopeless for f in findings):
        seeds = max(len(f.seeds) for f in findings)
        # The smallest n with family * 2/2^n < .05, and the largest family for the n there is.
        needed = math.floor(math.log2(2 * len(findings) / ALPHA)) + 1
        floor = smallest_sign_flip(seeds)
        affordable = math.ceil(ALPHA / floor) - 1 if floor else 0
        either = (
            f", or name at most {counted(affordable, 'contrast')} beforehand" if affordable else ""
        )
        lines.append(
            f"Nothing can be significant with {counted(seeds, 'paired seed')} and {contrasts}, "
            f"however clear it looks: run at least {needed} seeds{either}."
        )
    return "\n".join([*lines, *(f.verdict for f in findings), *comparison.notes])


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Method, mix, number of seeds, then each measure as `mean ± sd`; a dash where it has none."""
    return [
        (
            row.method,
            row.mix,
            str(row.n),
            *(_cell(row, measure) for measure in comparison.measures),
        )
        for row in comparison.rows
    ]


def _findings(results: Sequence[RunResult], contrasts: Sequence[Contrast]) -> tuple[Finding, ...]:
    """All contrasts at once, since Holm's correction needs all their p-values."""
    pairs = [(_side(results, c, c.left), _side(results, c, c.right)) for c in contrasts]
    seeds = [tuple(sorted(left.keys() & right.keys())) for left, right in pairs]
    # Rates are fractions of counts: what is left beyond 12 digits is rounding, not a difference.
    differences = [
        [round(left[seed] - right[seed], 12) for seed in both]
        for (left, right), both in zip(pairs, seeds, strict=True)
    ]
    ts, flips = [paired_t(d) for d in differences], [sign_flip(d) for d in differences]
    ts_holm, flips_holm = holm(ts), holm(flips)
    lowest = holm([smallest_sign_flip(len(d)) for d in differences])
    return tuple(
        Finding(
            contrast=contrast,
            seeds=seeds[i],
            left_out=tuple(sorted(pairs[i][0].keys() ^ pairs[i][1].keys())),
            difference=summarise(differences[i]) if seeds[i] else None,
            paired_t_p=ts[i],
            sign_flip_p=flips[i],
            paired_t_holm=ts_holm[i],
            sign_flip_holm=flips_holm[i],
            lowest_holm=lowest[i],
            family=len(contrasts),
        )
        for i, contrast in enumerate(contrasts)
    )


def _row(results: Sequence[RunResult], method: str, mix: str, measures: Sequence[str]) -> Row:
    values = {m: list(_by_seed(results, f"{method}:{mix}", m).values()) for m in measures}
    n = sum(run.method == method and mix in run.scores for run in results)
    return Row(method, mix, n, {m: summarise(v) for m, v in values.items() if v})


def _by_seed(results: Sequence[RunResult], side: str, measure: str) -> dict[int, float]:
    """The measure of `method:mix` by seed, over the runs that have it."""
    method, mix = side.split(":")
    values: dict[int, float] = {}
    for run in results:
        value = run.scores.get(mix, {}).get(measure) if run.method == method else None
        if value is None:
            continue
        if not math.isfinite(value):
            # Averaging over the runs that went well would flatter a method that sometimes fails.
            raise RecipeError(
                f"{run.path}: {measure} of the {mix} model is {value}; leave out the measure, "
                f"or seed {run.seed} of every method"
            )
        values[run.seed] = value
    return values


def _side(results: Sequence[RunResult], contrast: Contrast, side: str) -> dict[int, float]:
    if scores := _by_seed(results, side, contrast.measure):
        return scores
    measures: dict[str, set[str]] = {}
    for run in results:
        for mix, of_mix in run.scores.items():
            measures.setdefault(f"{run.method}:{mix}", set()).update(of_mix)
    if side not in measures:
        raise _unknown(f"contrast '{contrast}': model", side, measures)
    raise _unknown(f"contrast '{contrast}': measure of {side},", contrast.measure, measures[side])


def _check_runs(results: Sequence[RunResult]) -> None:
    if not results:
        raise RecipeError("nothing to compare: give the directories of finished runs")
    of_seed: dict[int, RunResult] = {}
    of_method: dict[tuple[str, int], RunResult] = {}
    for run in results:
        twin = of_method.setdefault((run.method, run.seed), run)
        if twin is not run:
            raise RecipeError(
                f"{twin.path} (lr {twin.lr:g}) and {run.path} (lr {run.lr:g}) are both "
                f"{run.method} with seed {run.seed}; give only one of them"
            )
        if run.base and results[0].base and run.base != results[0].base:
            raise RecipeError(
                f"{results[0].path} and {run.path} were trained on different bases, or with "
                f"different chat templates (digest {results[0].base[:12]} and {run.base[:12]}); "
                "compare runs over one base"
            )
        first = of_seed.setdefault(run.seed, run)
        if first.world != run.world:
            raise RecipeError(
                f"{first.path} and {run.path} have seed {run.seed} but other data or another "
                f"partition (world {first.world[:12]} and {run.world[:12]}), so they are no pair; "
                "compare runs of the same federation"
            )


def _check_contrasts(contrasts: Sequence[Contrast]) -> None:
    seen: set[tuple[frozenset[str], str]] = set()
    for contrast in contrasts:
        test = (frozenset((contrast.left, contrast.right)), contrast.measure)
        if test in seen:
            raise RecipeError(f"contrast '{contrast}' is named twice, perhaps the other way round")
        seen.add(test)


def _notes(results: Sequence[RunResult]) -> Iterable[str]:
    rates: dict[str, set[float]] = {}
    for run in results:
        rates.setdefault(run.method, set()).add(run.lr)
    for method, lrs in rates.items():
        if len(lrs) > 1:
            listed = ", ".join(f"{lr:g}" for lr in sorted(lrs))
            yield f"{method} ran at several learning rates ({listed}): its mean mixes settings."


def _cell(row: Row, measure: str) -> str:
    summary = row.summaries.get(measure)
    if summary is None:
        return "—"
    spread = "" if summary.sd is None else f" ± {summary.sd:.3f}"
    return f"{summary.mean:.3f}{spread}" + (f" (n={summary.n})" if summary.n < row.n else "")


def _unknown(what: str, word: str, known: Iterable[str]) -> RecipeError:
    names = sorted(known)
    return RecipeError(
        f"{what} {word!r} is in none of the runs.{nearest(word, names)} "
        f"They have: {', '.join(names)}"
    )
