"""The eight benchmarks.

MMLU, BBH, DROP, CRASS and HumanEval follow InstructEval (declare-lab/instruct-eval@49bbd2c), FPB
FinGPT's benchmark, GSM8K and PubMedQA lm-eval's prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from fedsdr.distill.generate import Sampling
from fedsdr.errors import RecipeError, nearest
from fedsdr.evaluate.benchmarks import readers
from fedsdr.evaluate.benchmarks.grading import (
    VERDICTS,
    last_number,
    macro_f1,
    same_sentiment,
    same_verdict,
    sentiments,
    starts_with_gold,
    verdict,
    worked_out,
)
from fedsdr.evaluate.benchmarks.questions import Benchmark

INSTRUCT_EVAL = "InstructEval"


def chosen_benchmarks(names: Iterable[str]) -> tuple[Benchmark, ...]:
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            guess = nearest(name, BENCHMARKS)
            raise RecipeError(f"--tasks: there is no task {name!r}.{guess} Known are {known}")
    return tuple(BENCHMARKS[name] for name in wanted)


def _greedy(new_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=new_tokens)


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        b.name: b
        for b in (
            Benchmark(
                name="mmlu",
                source=INSTRUCT_EVAL,
                sampling=_greedy(2),
                read=readers.read_mmlu,
                grade=starts_with_gold,
            ),
            Benchmark(
                name="bbh",
                source=INSTRUCT_EVAL,
                sampling=_greedy(32),
                read=readers.read_bbh,
                grade=starts_with_gold,
                by_group=True,
            ),
            Benchmark(
                name="drop",
                source=INSTRUCT_EVAL,
                sampling=_greedy(8),
                read=readers.read_drop,
                grade=starts_with_gold,
            ),
            Benchmark(
                name="crass",
                source=INSTRUCT_EVAL,
                sampling=_greedy(8),
                read=readers.read_crass,
                grade=starts_with_gold,
            ),
            Benchmark(
                name="humaneval",
                source=INSTRUCT_EVAL,
                # transformers' own top_k, which InstructEval leaves as it is.
                sampling=Sampling(temperature=0.1, top_p=1.0, top_k=50, max_new_tokens=512),
                read=readers.read_humaneval,
                grade=None,
            ),
            Benchmark(
                name="gsm8k",
                source="lm-eval",
                sampling=_greedy(256),
                read=readers.read_gsm8k,
                grade=worked_out,
                measures=last_number,
            ),
            Benchmark(
                name="fpb",
                source="FinGPT",
                sampling=_greedy(32),
                read=readers.read_fpb,
                grade=same_sentiment,
                measures=sentiments,
            ),
            Benchmark(
                name="pubmedqa",
                source="lm-eval's prompt",
                sampling=_greedy(8),
                read=readers.read_pubmedqa,
                grade=same_verdict,
                measures=macro_f1(verdict, VERDICTS),
            ),
        )
    }
)
