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
            Benchmark("mmlu", INSTRUCT_EVAL, _greedy(2), readers.read_mmlu, starts_with_gold),
            Benchmark(
                "bbh", INSTRUCT_EVAL, _greedy(32), readers.read_bbh, starts_with_gold, by_group=True
            ),
            Benchmark("drop", INSTRUCT_EVAL, _greedy(8), readers.read_drop, starts_with_gold),
            Benchmark("crass", INSTRUCT_EVAL, _greedy(8), readers.read_crass, starts_with_gold),
            Benchmark(
                "humaneval",
                INSTRUCT_EVAL,
                # transformers' own top_k, which InstructEval leaves as it is.
                Sampling(temperature=0.1, top_p=1.0, top_k=50, max_new_tokens=512),
                readers.read_humaneval,
                None,
            ),
            Benchmark(
                "gsm8k",
                "lm-eval",
                _greedy(256),
                readers.read_gsm8k,
                worked_out,
                measures=last_number,
            ),
            Benchmark(
                "fpb",
                "FinGPT",
                _greedy(32),
                readers.read_fpb,
                same_sentiment,
                measures=sentiments,
            ),
            Benchmark(
                "pubmedqa",
                "lm-eval's prompt",
                _greedy(8),
                readers.read_pubmedqa,
                same_verdict,
                measures=macro_f1(verdict, VERDICTS),
            ),
        )
    }
)
