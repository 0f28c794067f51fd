"""grpo: a student learns from its own answers, by what they earn (arXiv:2402.03300, 2501.12948).

Round after round it answers questions, several times each. Verifiers judge, rewards add up, and
each answer is compared with the others to the same question: what earned more becomes likelier,
what earned less less likely, and a reference keeps the student from going too far at once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from limbeck import chat, store
from limbeck.config import Plugin
from limbeck.folder import StageFolder
from limbeck.plugins import ADVANTAGES, OBJECTIVES, AdvantageChoice, ObjectiveChoice
from limbeck.student.examiner import RolloutConfig
from limbeck.student.rollouts import Round, Rounds
from limbeck.student.validation import validation
from limbeck.train.config import Share, TrainingConfig
from limbeck.train.diagnosis import diagnose
from limbeck.train.prescribed import Average, prescribed
from limbeck.types import Trace

if TYPE_CHECKING:
    from limbeck.train.advantages import Table
    from limbeck.train.batch import Group, Output
    from limbeck.train.policy_loss import PolicyLoss
    from limbeck.train.training import Training

WRITES = {"model": "model", "rollouts": "traces", "verdicts": "verdicts"}
RESUMES = True
DISTRIBUTED = True
SCRATCH = ("checkpoints", "reference", "own")  # until the manifest is there
SLACK = 0.02  # of a budget, beyond which it is told


class Config(RolloutConfig, TrainingConfig):
    BUDGETS = ("num_steps", "num_tokens", "num_flops")

    lr: Annotated[float, Field(gt=0, le=1)] = 3e-6
    """The highest learning rate."""
    warmup_ratio: Share = 0.0
    """The share of all steps in which it climbs."""
    final_lr_ratio: Share = 1.0
    """It ends at this share of it; at 1 it stays what it is."""
    num_steps: PositiveInt | None = None
    """Stops after so many steps, in the place of a budget of tokens or FLOPs."""
    objective: ObjectiveChoice = Field(default_factory=lambda: OBJECTIVES.parse("grpo"))
    """What is maximised: a function of `limbeck/train/policy.py`."""
    advantage: AdvantageChoice | None = None
    """How the answers to a question are compared: a function of `limbeck/train/advantages.py`; by
    default as the objective's paper prescribes."""
    average: Average | None = None
    """What a token weighs, as `limbeck/train/prescribed.py` says; by default as in that paper."""
    kl: Annotated[float, Field(ge=0)] = 0.001
    """What the distance from the reference counts; 0 does without one."""
    kl_estimate: Literal["k3", "output_k3", "unbiased_k3"] = "k3"
    """How that is measured: a function of `limbeck/train/kl.py`."""
    reference_steps: PositiveInt | None = 400
    """Steps after which the student becomes its own reference; None leaves it what it began as."""
    correction: PositiveFloat | None = None
    """Weighs a token by its probability for the trainer / for the engine, but at most by this."""
    template: Literal["r1_zero"] | None = None
    """In the place of the student's chat template: R1-Zero's plain prompt, for a base model."""

    @model_validator(mode="after")
    def _can_learn(self) -> Self:
        ignored = sorted({"kl_estimate", "reference_steps"} & self.model_fields_set)
        if self.num_samples == 1:
            raise ValueError("num_samples 1 leaves an answer nothing to compare with; take 2")
        if self.kl == 0 and ignored:
            raise ValueError(f"kl 0 does without a reference; drop {' and '.join(ignored)}")
        if self.correction is not None and self.temperature == 0:
            raise ValueError("correction needs texts that are drawn; drop it at temperature 0")
        if self.template is not None and self.engine is not None:
            what = "template is the trainer's, and the engine would ask by its own"
            raise ValueError(f"{what}; drop it, and let a stage `adopt` give it to the model")
        if self.validation is not None and self.validation.data is not None:
            raise ValueError("validation asks problems here; drop validation.data")
        return self

    @property
    def compare(self) -> Plugin:
        """What makes advantages (groups, G) of rewards (groups, G)."""
        return self.advantage or ADVANTAGES.parse(prescribed(self.objective.function).advantage)

    @property
    def averages(self) -> Average:
        """What a token weighs."""
        return self.average or prescribed(self.objective.function).average


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`, `rollouts` and `verdicts`; resumes exactly, in the middle of a round too."""
    from limbeck import models
    from limbeck.train.batch import pack_groups
    from limbeck.train.reference import Reference
    from limbeck.train.sums import means_of_all
    from limbeck.train.training import Training, load_student

    tokenizer = models.load_tokenizer(config.model)
    if config.template is not None:
        tokenizer.chat_template = chat.R1_ZERO_TEMPLATE
    training = Training(config, out, load_student(config, out), tokenizer, config.num_steps)
    rounds, loss = Rounds(config, training, _needs_own(config)), _loss(config)
    reference = Reference(training, config.reference_steps, loss.temperature) if config.kl else None
    validate = validation(training)
    out.log(rounds.plan())
    with training:
        for step in training.steps():
            round = rounds.at(step)  # answers to questions, judged and rewarded
            advantages = config.compare(round.rewards)  # each against the others to its question
            groups = _share(config, out, round, advantages, step)
            batches = pack_groups(groups, config.micro_batch_tokens, out.machine.device)
            columns = reference.at(step, batches) if reference else None
            training.step(batches, loss, columns, _total_weight(config, groups))
            training.tell(**rounds.told, **means_of_all(loss.take()), **loss.maxima())
            validate()
    findings = diagnose(out.metrics())
    for finding in findings:
        out.log(f"{finding.what} ({finding.evidence}); {finding.way_out}")
    told = {"findings": [f._asdict() for f in findings]}
    return training.save() | rounds.account() | _overspent(config, training) | told


def _overspent(config: Config, training: Training) -> dict[str, float]:
    """By what share of the budget of FLOPs its last round went beyond it, where that is much."""
    if config.num_flops is None:
        return {}
    share = training.state["flops"] / config.num_flops - 1
    if share <= SLACK:
        return {}
    what = f"took {share:.1%} more than num_flops, as what is begun counts whole"
    training.out.log(f"{what}; take smaller rounds: fewer questions_per_step or steps_per_round")
    return {"over_budget": share}


def _needs_own(config: Config) -> bool:
    """Whether the trainer's own log-probabilities stand in the place of the engine's."""
    from limbeck.train.old_logprobs import needs_own

    return config.temperature == 0 or needs_own(config.sampling(), config.correction)


def _loss(config: Config) -> PolicyLoss:
    from limbeck.train import kl
    from limbeck.train.policy_loss import PolicyLoss

    estimate, temperature = getattr(kl, config.kl_estimate), config.learned_sampling().temperature
    return PolicyLoss(config.objective, config.kl, estimate, temperature)


def _share(
    config: Config, out: StageFolder, round: Round, advantages: Table, step: int
) -> list[Group]:
    """A step's random share of a round's answers, those to one question together."""
    import numpy as np

    from limbeck.train.batch import Group

    seed = store.seed_of(config.seed, out.name, "share", round.number)
    order = np.random.default_rng(seed).permutation(advantages.size)
    share = np.array_split(order, config.steps_per_round)[step % config.steps_per_round]
    outputs = defaultdict(list)
    for row, column in sorted(divmod(place, config.num_samples) for place in share.tolist()):
        trace = round.learned[row].traces[column]
        outputs[row].append(_output(config, round, trace, float(advantages[row, column])))
    return [
        Group(round.prompts[round.learned[row].problem.id], found) for row, found in outputs.items()
    ]


def _output(config: Config, round: Round, trace: Trace, advantage: float) -> Output:
    """What is learned of an answer: its tokens, what each of them weighs, and their columns."""
    from limbeck.train.batch import Output
    from limbeck.train.old_logprobs import corrections

    ids, logp = [*(trace.token_ids or ())], [*(trace.logprobs or ())]
    weights = {"output": 1 / len(ids), "token": 1.0, "length": 1 / config.max_tokens}
    columns: dict[str, Any] = {"advantages": advantage, "old_logp": logp, "sampler_logp": logp}
    if own := round.own.get(trace.id):
        columns |= {"old_logp": own.whole, "own_logp": own.drawn}
        if config.correction is not None:
            columns["correction"] = corrections(own, logp, config.correction)
    return Output(ids, weights[config.averages], trace.id, columns)


def _total_weight(config: Config, groups: list[Group]) -> float | None:
    """What the step's sum is divided by: outputs, or what all of their tokens weigh."""
    num_outputs = sum(len(group.outputs) for group in groups)
    return None if config.averages == "token" else float(num_outputs)
