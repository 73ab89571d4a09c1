"""Which differences between methods hold up over seeds, in words.

Runs are paired by seed: a seed fixes world, partition and start for every method, so what differs
within a pair is the method. The contrasts are named before anything is looked at; both p-values of
each (paired t, sign-flip) are Holm-adjusted over all of them, and a difference holds up only when
both adjusted p are below .05. The 95 % intervals stand each on its own, unadjusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal

from fedsdr.errors import RecipeError, nearest
from fedsdr.evaluate.statistics import (
    Summary,
    holm,
    paired_t,
    sign_flip,
    smallest_sign_flip,
    summarise,
)

ALPHA = 0.05
BASELINE = "fedavg"
DEFAULT_MEASURES = ("recall", "retention", "hallucination", "redundancy")
# Any other measure, such as length, is neither: its verdicts say higher and lower, not better.
BETTER: Mapping[str, Literal["higher", "lower"]] = MappingProxyType(
    {
        "recall": "higher",
        "retention": "higher",
        "house_share": "higher",
        "hallucination": "lower",
        "redundancy": "lower",
        "omission": "lower",
    }
)
SPELT = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedsd": "FedSD", "fedsdr": "FedSDR"}
GRAMMAR = re.compile(r"([^\s:>]+:[^\s:>]+)\s*>\s*([^\s:>]+:[^\s:>]+)\s+on\s+([^\s:>]+)")


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run's final scores. `world` is a digest of what the seed must fix: data and partition."""

    path: str
    method: str
    seed: int
    world: str
    lr: float
    scores: Mapping[str, Mapping[str, float]]  # mix -> measure -> value


@dataclass(frozen=True, slots=True)
class Contrast:
    """`left` against `right`, each `method:mix`, on one measure; the tests are two-sided."""

    left: str
    right: str
    measure: str

    def __post_init__(self) -> None:
        if not GRAMMAR.fullmatch(str(self)):
            raise _malformed(str(self))
        if self.left == self.right:
            raise RecipeError(f"contrast '{self}' compares {self.left} with itself")

    @classmethod
    def parse(cls, text: str) -> Contrast:
        match = GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise _malformed(text)
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"{self.left} > {self.right} on {self.measure}"


@dataclass(frozen=True, slots=True)
class Row:
    method: str
    mix: str
    n: int
    summaries: Mapping[str, Summary]  # by measure; one that no run of this row has is absent


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out of one contrast: left - right, over the seeds that both have."""

    contrast: Contrast
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    difference: Summary | None  # None when the two have no seed in common
    paired_t_p: float | None
    sign_flip_p: float | None
    paired_t_holm: float | None
    sign_flip_holm: float | None
    lowest_holm: float | None  # `sign_flip_holm` if in every contrast all seeds agreed
    family: int  # how many contrasts Holm's correction is over

    @property
    def holds_up(self) -> bool:
        """Both adjusted p below .05; the sign-flip p alone where t is undefined (no variance)."""
        if self.sign_flip_holm is None or self.sign_flip_holm >= ALPHA:
            return False
        return self.paired_t_holm is None or self.paired_t_holm < ALPHA

    @property
    def hopeless(self) -> bool:
        """So few seeds, or so many contrasts, that no outcome could have held up."""
        return self.lowest_holm is None or self.lowest_holm >= ALPHA

    @property
    def verdict(self) -> str:
        return _verdict(self)


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
    """The table over seeds of every deployed mix, and what came out of each contrast."""
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
    contrasts = _counted(len(findings), "contrast")
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
            f", or name at most {_counted(affordable, 'contrast')} beforehand" if affordable else ""
        )
        lines.append(
            f"Nothing can be significant with {_counted(seeds, 'paired seed')} and {contrasts}, "
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
    found: dict[int, float] = {}
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
        found[run.seed] = value
    return found


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


def _verdict(finding: Finding) -> str:
    said = _outcome(finding)
    if finding.left_out:
        noun = "seed" if len(finding.left_out) == 1 else "seeds"
        seeds = ", ".join(map(str, finding.left_out))
        said += f" Without {noun} {seeds}, which only one of the two has."
    return said


def _outcome(finding: Finding) -> str:
    left, right = _names(finding.contrast)
    measure, n, difference = finding.contrast.measure, len(finding.seeds), finding.difference
    if difference is None:
        return f"{left} and {right} cannot be compared on {measure}: they have no seed in common."
    if abs(difference.mean) < 1e-12:
        return f"{left} and {right} are level on {measure} over {_counted(n, 'seed')}."
    higher, better = difference.mean > 0, BETTER.get(measure)
    if better is None:
        verb = "is higher than" if higher else "is lower than"
    elif higher == (better == "higher"):
        verb = "beats" if finding.holds_up else "is ahead of"
    else:
        verb = "loses to" if finding.holds_up else "is behind"
    remark = " (lower is better)" if better == "lower" else ""
    said = f"{left} {verb} {right} on {measure}{remark} by {abs(difference.mean):.3f}"
    if difference.interval is not None:
        low, high = difference.interval if higher else [-x for x in reversed(difference.interval)]
        said += f" [{low:z.3f}, {high:z.3f}]"
    if n < 6:
        return f"{said}; with fewer than 6 seeds nothing can be significant."
    if finding.hopeless:
        contrasts = _counted(finding.family, "contrast")
        return f"{said}; with {n} seeds and {contrasts} nothing can be significant."
    if finding.holds_up:
        return f"{said}; this holds up ({_tests(finding)})."
    return f"{said}; the difference does not hold up ({_tests(finding)})."


def _tests(finding: Finding) -> str:
    shown = {"paired t": finding.paired_t_holm, "sign-flip": finding.sign_flip_holm}
    told = [f"{test} {_p(p)}" for test, p in shown.items()]
    return ", ".join([*told, f"Holm over {_counted(finding.family, 'contrast')}"])


def _p(p: float | None) -> str:
    if p is None:
        return "undefined as all seeds differ by the same amount"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def _names(contrast: Contrast) -> tuple[str, str]:
    """The methods as people spell them; a mix is said unless it goes without saying."""
    (left, left_mix), (right, right_mix) = contrast.left.split(":"), contrast.right.split(":")
    quiet = "global" if left != right else ""

    def name(method: str, mix: str) -> str:
        return SPELT.get(method, method) + (f" ({mix})" if mix != quiet else "")

    return name(left, left_mix), name(right, right_mix)


def _cell(row: Row, measure: str) -> str:
    summary = row.summaries.get(measure)
    if summary is None:
        return "—"
    spread = "" if summary.sd is None else f" ± {summary.sd:.3f}"
    return f"{summary.mean:.3f}{spread}" + (f" (n={summary.n})" if summary.n < row.n else "")


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _unknown(what: str, word: str, known: Iterable[str]) -> RecipeError:
    names = sorted(known)
    return RecipeError(
        f"{what} {word!r} is in none of the runs.{nearest(word, names)} "
        f"They have: {', '.join(names)}"
    )


def _malformed(text: str) -> RecipeError:
    return RecipeError(
        f"cannot read the contrast {text!r}; write METHOD:MIX > METHOD:MIX on MEASURE, "
        "as in 'fedsd:global > fedavg:global on recall'"
    )
