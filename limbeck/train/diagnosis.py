"""Why a reward stays flat or is gamed, read off the rows that a GRPO training writes.

A cause that is there from the first round is named alone, since it explains what comes of it;
else the first of those that came later. What engine and trainer disagree on stands beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from limbeck.train.story import Row, Story


class Finding(NamedTuple):
    """What is wrong, the figures that show it, and what to do about it."""

    what: str
    evidence: str
    way_out: str


def diagnose(rows: Sequence[Row]) -> list[Finding]:
    """Findings from the metrics of a training, a row a step; none where all is well."""
    story = Story.of(rows)
    if not story.rounds:
        return []
    causes = _first(FROM_THE_START, story) or _first(LATER, story)
    return causes + _first([mismatch], story)


Rule = Callable[[Story], Finding | None]


def _first(rules: Sequence[Rule], story: Story) -> list[Finding]:
    return [found for found in (rule(story) for rule in rules) if found][:1]


def no_verdict(story: Story) -> Finding | None:
    """The verifier cannot judge most answers."""
    causes = {
        "bad_gold": ("the known answers cannot be read", "name the verifier that they are for"),
        "timeout": ("judging takes too long", "raise the verifier's time limit"),
        "error": ("the verifier fails", "evaluate the engine gold on them and read the log"),
    }
    shares = {reason: story.early(f"reasons.{reason}") for reason in causes}
    reason = max(shares, key=shares.__getitem__)
    if shares[reason] < 0.3:
        return None
    why, way_out = causes[reason]
    evidence = f"{shares[reason]:.0%} of the first answers have the verdict {reason}: {why}"
    return Finding("most answers cannot be judged", evidence, way_out)


def denial(story: Story) -> Finding | None:
    """The verifier does not accept the known answers, however well they are written."""
    denied, correct = story.early("denied"), story.early("correct")
    if denied < 0.05 or denied < correct / 4:
        return None
    evidence = (
        f"{denied:.0%} of the first answers end in the known answer and were not judged right, "
        f"{correct:.0%} were"
    )
    way_out = "evaluate the engine gold on these problems: its answers should all be right"
    return Finding("the verifier denies right answers", evidence, way_out)


def wrong_template(story: Story) -> Finding | None:
    """The answers do not have the form that they are read by."""
    ended = 1.0 - story.early("truncated")
    never_closed = story.early("reasons.truncated") - story.early("truncated")
    unread = story.early("reasons.unparsed") + max(0.0, never_closed)
    well_formed = story.early("rewards.format", ended)  # of all answers; none asked for: no fault
    never_ends = ended < 0.5 and story.early("direct") > 0.5
    if not never_ends and unread <= 0.5 * ended and well_formed > 0.1 * ended:
        return None
    if ended < 0.1 and not never_ends:
        return None  # what thinks until it is cut off has no form yet
    evidence = (
        f"of the first answers {1 - ended:.0%} never end, {unread:.0%} end and cannot be read, "
        f"{story.early('direct'):.0%} do not think"
    )
    if story.curve("rewards.format"):
        evidence += f"; the format reward is {well_formed:.2f}"
    way_out = (
        "read a rollout: give the template that the model knows, or show it the form by sft first"
    )
    return Finding("the answers do not have the asked-for form", evidence, way_out)


def same_samples(story: Story) -> Finding | None:
    """All samples of a problem are one text, though the model could say something else."""
    identical, entropy = story.early("identical"), story.early("entropy", 1.0)
    if identical < 0.8 or entropy < 0.01:
        return None
    evidence = (
        f"in {identical:.0%} of the first groups all samples are one text, at an entropy of "
        f"{entropy:.2f} nats a token"
    )
    way_out = "sample at temperature 1, without top_k or a small top_p"
    return Finding("the samples of a problem do not differ", evidence, way_out)


def truncation(story: Story) -> Finding | None:
    """Answers are cut off before they are given."""
    early, late = story.early("truncated"), story.late("truncated")
    if early < 0.3:
        return None
    evidence = (
        f"{early:.0%} of the first answers ran into max_tokens, {late:.0%} of the last ones, "
        f"at a mean of {story.early('mean_length'):,.0f} tokens"
    )
    return Finding("answers are cut off", evidence, "raise max_tokens")


def too_easy(story: Story) -> Finding | None:
    """Nearly every group is all right: nothing is left to learn."""
    return _without_signal(story, "all_right", "too easy", "take harder problems")


def too_hard(story: Story) -> Finding | None:
    """Nearly every group is all wrong: no answer shows the way."""
    way_out = "take easier problems, more samples for each, or begin with sft"
    return _without_signal(story, "all_wrong", "too hard", way_out)


def _without_signal(story: Story, share: str, how: str, way_out: str) -> Finding | None:
    groups, right = story.early(share), story.early("correct")
    if groups < 0.85 or (share == "all_wrong" and story.late("correct") > right + 0.05):
        return None
    evidence = (
        f"{groups:.0%} of the first groups are {share.replace('_', ' ')}, {right:.1%} of the "
        f"answers right; {story.early('no_signal'):.0%} of the groups earn the same throughout"
    )
    return Finding(f"the problems are {how}", evidence, way_out)


def constant_reward(story: Story) -> Finding | None:
    """All answers of nearly every group earn the same, whatever their verdicts."""
    if story.early("no_signal") < 0.9:
        return None
    evidence = (
        f"in {story.early('no_signal'):.0%} of the first groups all answers earn the same, "
        f"though {story.early('correct'):.0%} of them are right"
    )
    return Finding("the reward tells nothing apart", evidence, "reward what differs: correct")


def hacking(story: Story) -> Finding | None:
    """The reward climbs while the answers get worse."""
    name, worth = ("validation pass@1", [value for _, value in story.looks])
    if len(worth) < 3:
        name, worth = "the share of right answers", story.curve("correct")
    if len(worth) < 3:
        return None
    size = max(1, len(worth) // 4)
    means = [sum(worth[at : at + size]) / size for at in range(len(worth) - size + 1)]
    peak = max(range(len(means)), key=means.__getitem__)
    reward = story.curve("reward")
    then = reward[round(peak / max(1, len(means)) * len(reward)) :][: max(1, len(reward) // 4)]
    rise = story.late("reward") - sum(then) / len(then)
    spread = max(reward) - min(reward)
    fall = means[peak] - means[-1]
    if fall < max(0.05, 0.15 * means[peak]) or rise < 0.1 * spread or rise <= 0:
        return None
    evidence = (
        f"the reward climbed from {story.early('reward'):.2f} to {story.late('reward'):.2f} while "
        f"{name} fell from {means[peak]:.0%} to {means[-1]:.0%}"
    )
    part = _climbed_most(story)
    evidence += f"; {part} climbed most" if part else ""
    way_out = "stop where it was best, give that reward less weight, or take a higher kl"
    return Finding("the reward is gamed", evidence, way_out)


def _climbed_most(story: Story) -> str | None:
    parts = {name for found in story.rounds for name in found if name.startswith("rewards.")}
    rises = {name: story.late(name) - story.early(name) for name in sorted(parts)}
    best = max(rises, key=rises.__getitem__, default=None)
    return best.removeprefix("rewards.") if best and rises[best] > 0 and len(rises) > 1 else None


def steps_too_large(story: Story) -> Finding | None:
    """The policy broke: what it had reached is gone, and its steps show why."""
    best, late = story.best("reward"), story.late("reward")
    fall = max(0.1, 0.25 * abs(best), 4 * story.noise("reward"))  # the best of many is lucky, too
    if len(story.rounds) < 3 or best - late < fall:
        return None
    entropy, last_entropy = story.curve("entropy")[:1], story.late("entropy")
    signs = []
    if entropy and last_entropy < 0.3 * entropy[0]:
        signs.append(f"the entropy fell from {entropy[0]:.2f} to {last_entropy:.2f}")
    if entropy and last_entropy > 2 * entropy[0] + 0.1:
        signs.append(f"the entropy rose from {entropy[0]:.2f} to {last_entropy:.2f}")
    norms = story.curve("grad_norm")
    if norms and max(norms) > 5 * median(norms[: max(1, len(norms) // 4)]) > 0:
        signs.append(f"the gradient's norm reached {max(norms):.3g}")
    if (distance := max(story.curve("kl"), default=0.0)) > 0.5:
        signs.append(f"the policy is {distance:.3g} nats a token from its reference")
    if (clipped := max(story.curve("clip_share"), default=0.0)) > 0.2:
        signs.append(f"{clipped:.0%} of the tokens were clipped")
    if not signs:
        return None
    evidence = f"the reward fell from {best:.2f} to {late:.2f}; {', '.join(signs)}"
    return Finding("the learning rate is too high", evidence, "lower lr, by a factor of 3 to 10")


def thinking_given_up(story: Story) -> Finding | None:
    """Answers shrink because their author stops to think."""
    before, after = story.early("mean_length"), story.late("mean_length")
    direct, then = story.late("direct"), story.early("direct")
    if after > 0.7 * before or direct - then < 0.1:
        return None
    evidence = (
        f"answers shrank from {before:,.0f} to {after:,.0f} tokens, and {direct:.0%} of them do "
        f"not think any more ({then:.0%} at first)"
    )
    way_out = "begin with a base that seldom answers directly, and reward the format"
    return Finding("thinking is given up", evidence, way_out)


def exploration_ended(story: Story) -> Finding | None:
    """The policy says the same every time before it is right."""
    before, after = story.early("entropy"), story.late("entropy")
    if after > 0.15 * before or story.late("no_signal") < 0.6 or story.late("correct") > 0.9:
        return None
    evidence = (
        f"the entropy fell from {before:.2f} to {after:.3f} nats a token; in "
        f"{story.late('no_signal'):.0%} of the groups all answers earn the same, with "
        f"{story.late('correct'):.0%} of them right"
    )
    way_out = "clip higher upward (objective dapo), lower lr, or take harder problems"
    return Finding("exploration has ended", evidence, way_out)


def steps_too_small(story: Story) -> Finding | None:
    """The policy stays what it was."""
    distance = story.curve("kl")
    if len(story.rounds) < 8 or not distance or max(distance) > 5e-5:
        return None
    if story.late("no_signal") > 0.8 or story.late("reward") > story.early("reward") + 0.1:
        return None
    evidence = (
        f"after {len(story.rounds)} rounds it is {max(distance):.1g} nats a token from its "
        f"reference, and the reward went from {story.early('reward'):.2f} to "
        f"{story.late('reward'):.2f}"
    )
    way_out = (
        "raise lr: DeepSeek-R1's 3e-6 is for 671B parameters, a miniature wants 100 times more"
    )
    return Finding("the policy hardly moves", evidence, way_out)


def mismatch(story: Story) -> Finding | None:
    """Engine and trainer do not agree on how likely a token is."""
    found = story.curve("mismatch_kl")
    if not found or median(found) < 0.01:
        return None
    evidence = f"KL(engine || trainer) is {median(found):.3f} nats a token"
    if largest := story.curve("mismatch_max"):
        evidence += f", and up to a factor of {max(largest):,.1f} on one token"
    way_out = "give both the same dtype and weights, or set correction: 2.0"
    return Finding("engine and trainer disagree", evidence, way_out)


FROM_THE_START: Sequence[Rule] = (
    no_verdict, denial, same_samples, wrong_template, truncation, too_easy, too_hard,
    constant_reward,
)  # fmt: skip
LATER: Sequence[Rule] = (
    hacking, steps_too_large, thinking_given_up, exploration_ended, steps_too_small,
)  # fmt: skip
