"""The reference: what the policy was some steps ago, and is not to leave too fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck import ledger, models, processes, sharding, store
from limbeck.errors import UserError
from limbeck.train import adapters
from limbeck.train.batch import TokenBatch
from limbeck.train.head import TokenModel
from limbeck.train.old_logprobs import of_tokens
from limbeck.train.step import Columns
from limbeck.train.training import Training
from limbeck.types import Sampling


class Reference:
    """A frozen copy of the policy, adapters added up, taken anew every so many steps (None: once).

    The copies lie under `reference` in the stage's folder for as long as a checkpoint may need
    them: whoever resumes is compared with the very same, for which the hash in a copy's name
    vouches. `temperature` divides the logits, as it does the policy's.
    """

    def __init__(self, training: Training, every_steps: int | None, temperature: float) -> None:
        self.training, self.every_steps = training, every_steps
        self.temperature = temperature
        self.folder = training.out.path / "reference"
        self.model: TokenModel | None = None

    def at(self, step: int, batches: Sequence[TokenBatch]) -> Columns:
        """What the reference says of a step's batches, once it has taken the policy's weights if it
        is time to."""
        taken, training = self._taken(step), self.training
        if taken == step:
            self._take(step)
        if taken == step or self.model is None:
            self.model = self._load(taken)
        num_tokens = sum(batch.num_tokens for batch in batches)
        training.spend(ledger.forward_flops(training.num_parameters, num_tokens))
        return self._columns

    def _columns(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """A batch's own columns, and `ref_logp` (N,), in nats, where something is learned."""
        assert self.model is not None
        sampling = Sampling(temperature=self.temperature)
        whole, _ = of_tokens(self.model, batch, sampling, self.training.autocast)
        ref_logp = torch.zeros_like(batch.weights)
        ref_logp[batch.loss_positions] = whole
        return {**batch.columns, "ref_logp": ref_logp}

    def _taken(self, step: int) -> int:
        """The step whose policy is the reference at this step."""
        return 0 if self.every_steps is None else step - step % self.every_steps

    def _copies(self, step: int) -> list[Path]:
        """The copy of a step; for a moment there are two, if it is taken again."""
        return [*self.folder.glob(f"step-{step:06d}-*.safetensors")]

    def _take(self, step: int) -> None:
        weights = adapters.plain_weights(self.training.student)
        if processes.leads():
            self._sweep()
            self.folder.mkdir(exist_ok=True)
            aside = self.folder / f".step-{step:06d}.writing"
            save_file({name: weight.clone() for name, weight in weights.items()}, aside)
            path = self.folder / f"step-{step:06d}-{store.hash_file(aside)[:16]}.safetensors"
            store.commit(aside, path)
            for other in self._copies(step):
                if other != path:
                    other.unlink()
        processes.gather(None)  # nobody reads before it is there
        store.failpoint(f"{self.training.out.name}.reference-{step}")

    def _sweep(self) -> None:
        """Removes what no checkpoint needs; to one at which a copy is taken it is taken again."""
        steps = [int(path.name[5:]) for path in self.training.checkpoints.glob("step-*")]
        needed = {path for step in steps for path in self._copies(self._taken(step))}
        for path in self.folder.glob("step-*"):
            if path not in needed:
                path.unlink()

    def _load(self, step: int) -> TokenModel:
        config, path = self.training.config, self._whole(step)
        place = "cpu" if processes.num() > 1 else self.training.out.machine.device
        plain = models.load_model(config.model, "float32", place, config.context, config.rope_theta)
        plain.load_state_dict(load_file(path))
        model = TokenModel(plain).requires_grad_(False).eval()
        sharding.shard(model)
        return model

    def _whole(self, step: int) -> Path:
        """The copy of a step, as it was written."""
        way_out = f"restore it, or start the stage anew with --redo {self.training.out.name}"
        path = next(iter(self._copies(step)), None)
        if path is None:
            raise UserError(str(self.folder), f"lacks the copy of step {step:,}", way_out)
        if not path.stem.endswith(store.hash_file(path)[:16]):
            raise UserError(str(path), "changed on disk since it was written", way_out)
        return path
