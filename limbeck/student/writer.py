"""On-policy learning: before each step the student writes some of the examples itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Self

from pydantic import PositiveInt, model_validator

from limbeck import processes, store
from limbeck.config import HowRun
from limbeck.engines.sampling import SamplingConfig
from limbeck.student.author import Author
from limbeck.train.config import Share
from limbeck.types import Message, Problem, Request, Trace

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.train.batch import Example, TokenBatch
    from limbeck.train.examples import Lessons
    from limbeck.train.teaching import Teaching
    from limbeck.train.training import Training


class OnPolicy(SamplingConfig):
    """The student writes, the teacher says what it would have written at each token."""

    student_share: Share = 1.0
    """The share of each step's examples that the student writes (GKD's lambda); the rest are the
    data set's own."""
    reward: bool = False
    """In the place of the divergence, rewards each token by how much likelier the teacher finds it
    than the student does, a policy gradient."""
    max_tokens: PositiveInt = 512
    """A text that has not ended by then is learned from as far as it goes."""
    batch_rows: HowRun[PositiveInt] = 64
    """Texts that are written at once."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        as_it_is = (self.temperature, self.top_p, self.top_k, self.min_p) == (1.0, 1.0, None, 0.0)
        if self.reward and not (as_it_is and self.student_share == 1):
            what = "reward needs texts drawn from the student as it is, and no others"
            raise ValueError(f"{what}; drop student_share, temperature, top_p, top_k and min_p")
        return self


class Writer:
    """The student as an author: before each step it writes a share of the examples anew.

    `names` are those of the examples that it wrote for this step, `told` says what they are like.
    """

    def __init__(
        self,
        asked: OnPolicy | None,
        training: Training,
        lessons: Lessons,
        teaching: Teaching,
        longest: int,
    ) -> None:
        self.asked, self.training, self.lessons = asked, training, lessons
        self.teaching, self.longest = teaching, longest
        self.author: Author | None = None
        self.names: set[str] = set()
        self.told: dict[str, float] = {}

    def examples(self, step: int, rows: Sequence[int]) -> list[Example]:
        """A step's examples: the first are the student's own, from the prompts of these rows."""
        from limbeck.train.on_policy import num_written
        from limbeck.train.teaching import Text, text_of

        self.names, self.told = set(), {}
        given = [self.lessons.examples[row] for row in rows]
        asked = self.asked
        num_own = num_written(asked.student_share, step, len(rows)) if asked else 0
        if asked is None or not num_own:
            return given
        texts = [text_of(self.lessons.rows[row]) for row in rows]
        traces = self._write(step, rows[:num_own], [text.prompt for text in texts], asked)
        for place, trace in enumerate(traces):
            given[place] = self._example(given[place], trace, f"text {place} of step {step}")
            texts[place] = Text(texts[place].prompt, trace.text, trace.finish == "stop")
        self.names = {example.name for example in given[:num_own]}
        self.teaching.read(given, texts)
        return given

    def columns(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """The teacher's of a batch, and, where the student writes, which labels are hard."""
        from limbeck.train.on_policy import hard_labels

        theirs = self.teaching.columns(batch)
        return {**theirs, "hard": hard_labels(batch, self.names)} if self.asked else theirs

    def _write(
        self, step: int, rows: Sequence[int], prompts: Sequence[Sequence[Message]], asked: OnPolicy
    ) -> list[Trace]:
        """A text to each prompt, with a seed of its own: whoever resumes writes it again."""
        training, out = self.training, self.training.out
        if self.author is None:
            self.author = Author(training.student, training.tokenizer, out.name, asked.batch_rows)
        else:
            self.author.refresh()
        requests = []
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=False)):
            problem = Problem(
                f"{row} {self.lessons.examples[row].name}", tuple(prompt), "", "exact"
            )
            seed = store.seed_of(training.config.seed, out.name, "written", step, place)
            row_id = out.row_id(problem.id, place, f"step {step}")
            requests.append(Request(row_id, problem, step, seed))
        with training.aside(), out.account("write") as account:
            traces = self.author.write(requests, asked.sampling()) if out.leads else []
            traces = [Trace(**trace) for trace in processes.agreed([*map(asdict, traces)])]
            account["tokens_in"] = sum(trace.prompt_tokens for trace in traces)
            account["tokens_out"] = sum(trace.completion_tokens for trace in traces)
            account["flops"] = self.author.flops(traces)
        training.state["flops"] += self.author.flops(traces)
        self._tell(traces)
        return traces

    def _example(self, given: Example, trace: Trace, name: str) -> Example:
        """The prompt of a given example, and what the student wrote to it."""
        prompt = given.ids[: given.loss_mask.index(1)]
        written = [*(trace.token_ids or ())][: self.longest - len(prompt)]
        mask = [0] * len(prompt) + [1] * len(written)
        return replace(given, ids=prompt + written, loss_mask=mask, name=f"{given.name}, {name}")

    def _tell(self, traces: Sequence[Trace]) -> None:
        found = {
            "texts": len(traces),
            "tokens": sum(trace.completion_tokens for trace in traces),
            "truncated": sum(trace.finish == "length" for trace in traces),
        }
        before = self.training.state.get("written", {})
        self.training.state["written"] = {n: before.get(n, 0) + num for n, num in found.items()}
        self.told = {
            "truncated": found["truncated"] / found["texts"],
            "mean_length": found["tokens"] / found["texts"],
        }
