"""What a report may show: plain rows, as `limbeck show --json` prints them.

Scores, intervals and differences are shares (0.61 is 61 %) unless the row has a `unit`, of which
less is better; intervals are 95 %, a test's difference is a minus b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """Everything the page may show; what is empty is left out."""

    name: str
    title: str
    command: str = ""
    started: object = ""
    finished: object = ""
    headline: str = ""
    intro: str = ""
    thinks: bool = False
    """Whether models think before they answer: the page speaks of reasoning only then."""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Row = field(default_factory=dict)
    """cpu, cores, threads, gemm_gflops, cpu_seconds, wall_seconds"""
    results: Sequence[Row] = ()
    """name, split, metric, value, low, high, num_problems, num_samples, tokens_per_answer, cost,
    a cost_unit if it is not FLOPs, and seeds: [value] if several are pooled; `rerun`, by how much
    the value would move if asked again; of the answers the shares truncated, unparsed, timed_out
    and failed"""
    tests: Sequence[Row] = ()
    """a, b, split, difference, low, high, p, verdict[, note][, needed: {num_problems,
    num_samples}]; the first is the headline's, its a the student"""
    families: Sequence[Row] = ()
    """name, split, domain, metric, value, low, high, num_problems"""
    guess: Sequence[Row] = ()
    """split, domain, share: the score of always guessing the commonest answer"""
    models: Sequence[Row] = ()
    """name, num_parameters, loss_tokens, prompt_tokens, num_examples, num_steps, cpu_seconds,
    flops, trained_on"""
    funnel: Sequence[Row] = ()
    """stage, authors, sampled, kept, dropped: {reason: count}; the student's own comes first"""
    verdict_reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    learning: Sequence[Row] = ()
    """name, curves: {number: [(step, value)]}, findings: [{what, evidence, way_out}], gain:
    [{split, pass_at_1, greedy, pass_at_k, reach[, after: {…}]}]: of reinforcement learning"""
    curves: Sequence[Row] = ()
    """name, points: [(step, loss)][, heldout: [(step, loss)]][, parts: {name: [(step, loss)]}]"""
    scales: Sequence[Row] = ()
    """name, step, part, loss, share: of a mixed loss's gradient"""
    distributions: Sequence[Row] = ()
    """name, teacher, tokens, bytes"""
    sizes: Sequence[Row] = ()
    """name, num_parameters, num_bytes, tokens_per_second, peak_memory_mib"""
    sweep: Sequence[Row] = ()
    """temperature, alpha, and a row of the results: what students of the same start came to"""
    lengths: Sequence[Row] = ()
    """name, values: completion tokens"""
    examples: Sequence[Row] = ()
    """problem, answer, good: {text, reason, id}, bad: {text, reason, id}"""
    answers: Sequence[Row] = ()
    """problem, gold, by: [{name, text, reason}]"""
    budgets: Sequence[Row] = ()
    """name, flops, flops_with_teacher, share_of_flops, share_of_flops_with_teacher, paid_tokens"""
    trials: Sequence[Row] = ()
    """stage, model, settings: {…}, metric, value, low, high, flops, chosen: what was chosen from"""
    ledger: Sequence[Row] = ()
    """stage, verb, wall_seconds, cpu_seconds, tokens_in, tokens_out, flops, peak_memory_mib"""
    costs: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """What a unit of something came to: rows by kind, `per_accepted_trace` and others"""
    frontier: Sequence[Row] = ()
    """name, split, metric, value, low, high, kind, and of num_parameters, num_bytes,
    peak_memory_mib, latency_s, tokens_per_answer and others what was measured"""
    compression: Sequence[Row] = ()
    """name, called in the results, verb, how, made_of, of num_parameters, num_bytes, sparsity,
    bits_per_weight what is known, and as in the frontier split, metric, value, …; `longer`, its
    tokens over those of made_of"""
    gates: Sequence[Row] = ()
    """stage, model, before, max_drop, chosen, verdict, metric, value, low, high, test:
    {difference, low, high}, length: {ratio, low, high}: what was let through, and what was not;
    `before` is the model that it was held against"""
    ratios: Sequence[Row] = ()
    """stage, a, b, at, ratio, low, high: how many times as fast as b the engine a writes"""
    scans: Sequence[Row] = ()
    """stage, levels: [sparsity], dense: nats, blocks: [{index, name, loss: [rise]}]"""
    forgetting: Sequence[Row] = ()
    """after, before, split, metric, difference, low, high, p, verdict"""
    published: Sequence[Row] = ()
    """name, paper_name, split, metric, value, low, high, published, source, differs: [why]"""
    notes: Sequence[str] = ()
    recipe_text: str = ""
