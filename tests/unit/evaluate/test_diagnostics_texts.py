"""Divergence and TF-IDF by hand; and on data that nobody here wrote."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from fedsdr.data.formats import read_table
from fedsdr.distill.checks import prompt_text
from fedsdr.evaluate.diagnostics.representations import js_divergence, terms, tfidf_cosine
from fedsdr.evaluate.diagnostics.tables import as_matrix, mean, off_diagonal

REAL = Path(__file__).parents[4] / "shared" / "data"
needs_real = pytest.mark.skipif(
    not (REAL / "clients").is_dir(), reason="the real clients (../shared/data) are not here"
)


def test_terms_are_words_and_marks() -> None:
    assert sorted(terms("Don't f(x_1)!")) == sorted(
        ["don", "t", "f", "x", "1", "'", "(", "_", ")", "!"]
    )
    assert terms("naïve café") == ["naïve", "café"]


def test_divergence_by_hand() -> None:
    """p = (1/2, 1/2, 0), q = (0, 1/2, 1/2): m = (1/4, 1/2, 1/4), H(m) = 3/2, H(p) = H(q) = 1."""
    found = js_divergence([["a b"], ["b", "c"], ["x y z"], ["b a", "A B"]])
    assert found[0, 1] == pytest.approx(0.5)
    assert found[0, 2] == pytest.approx(1.0)  # disjoint
    assert found[0, 3] == pytest.approx(0.0, abs=1e-12)  # the same shares, other counts
    assert torch.equal(found, found.T)
    assert found.diagonal().tolist() == [0.0] * 4


def test_unequal_shares_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/4, 3/4): 1 − H(3/4, 1/4)."""
    entropy = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    assert js_divergence([["a a a b"], ["a b b b"]])[0, 1] == pytest.approx(1 - entropy)


def test_a_client_without_words_has_no_divergence() -> None:
    found = js_divergence([["a"], [""], ["b"]])
    assert as_matrix(found) == [[0.0, None, 1.0], [None, None, None], [1.0, None, 0.0]]
    assert mean(off_diagonal(as_matrix(found))) == 1.0
    assert js_divergence([[""], [""]]).isnan().all()


def test_tfidf_by_hand() -> None:
    """n = 2: idf(a) = 1, idf(b) = idf(c) = 1 + ln(3/2); cosine = 1/(1 + idf(b)²)."""
    idf = 1 + math.log(1.5)
    found = tfidf_cosine([["a b"], ["A, c."]])
    assert found[0, 1] == pytest.approx(1 / (1 + idf**2))
    assert found[0, 0] == pytest.approx(1.0)


def test_tfidf_takes_the_mean_of_texts_of_length_one() -> None:
    """A long text counts as much as a short one: [x, y] and [y, x…] have the same centroid."""
    assert tfidf_cosine([["x", "y"], ["y y y y", "x x"]])[0, 1] == pytest.approx(1.0)
    assert tfidf_cosine([["x"], ["..."]]).isnan()[0].tolist() == [False, True]


def stats(section: str) -> list[list[float]]:
    text = (REAL / "STATS.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return [[float(v) for v in line.split("|")[2:-1]] for line in re.findall(r"\| c.*", text)[1:]]


@needs_real
@pytest.mark.parametrize(("section", "worst"), [("jsd_output", 0.06), ("jsd_prompt", 0.02)])
def test_real_clients_are_as_far_apart_as_others_found(section: str, worst: float) -> None:
    """Their figures are over GPT-2's tokens, these over words and marks: 28 pairs in nearly the
    same order, and nearly as far."""
    clients = [read_table(f).examples for f in sorted(REAL.glob("clients/*/train.jsonl"))]
    texts = [
        [e.response if section == "jsd_output" else prompt_text(e) for e in own] for own in clients
    ]
    found, theirs = js_divergence(texts), torch.tensor(stats(section), dtype=torch.float64)
    at = torch.triu_indices(8, 8, 1)
    ours, theirs = found[at[0], at[1]], theirs[at[0], at[1]]
    assert spearmanr(ours, theirs).statistic > 0.99
    assert float((ours - theirs).abs().max()) < worst
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.005)


@needs_real
def test_real_rewriting_draws_the_tools_client_to_the_others() -> None:
    """STATS.md: 7 divergences of c6 to the others fall, c0's hardly move."""
    clients = {
        f.parent.name: [e.response for e in read_table(f).examples]
        for f in sorted(REAL.glob("clients/*/train.jsonl"))
    }
    before = js_divergence(list(clients.values()))
    for file in sorted(REAL.glob("rewrites/*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        clients[file.name.split(".")[0]] = [row["output_distilled"] for row in rows]
    after = js_divergence(list(clients.values()))
    tools = list(clients).index("c6_tools")
    others = [i for i in range(8) if i not in (tools, list(clients).index("c5_finance"))]
    assert bool((after[tools, others] < before[tools, others] - 0.05).all())
    assert float((after[0, 1:6] - before[0, 1:6]).abs().max()) < 0.05
