"""The training loops: ``transformers.Trainer`` with our loss, and checkpoints that are whole."""

import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from contraprune.bank import Bank, Candidates, RowFile
from contraprune.config import ContrastConfig
from contraprune.contrastive import source_terms
from contraprune.criteria.base import Criterion
from contraprune.encoding import Reader, features_of, unpack_tokens
from contraprune.errors import UserError
from contraprune.files import replace_folder
from contraprune.objectives import Draws
from contraprune.prediction import evaluate
from contraprune.processes import Part, gather_examples
from contraprune.products import fast_products
from contraprune.runs import checkpoints
from contraprune.seeding import seeded
from contraprune.tasks import Task

PRUNING_STATE = "pruning.safetensors"


class EpochSampler(LengthGroupedSampler):
    """Batches of similar length in random order, drawn from (seed, epoch) alone: a resumed epoch sees the same.

    The stock sampler goes from long to short again and again and so ends every epoch on its shortest texts; here
    the batches are shuffled. A last, smaller batch stays last.
    """

    def __init__(self, batch_size: int, lengths: list[int], *, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = seeded(self.seed, self.epoch)
        grouped = list(super().__iter__())
        whole = len(grouped) // self.batch_size
        order = torch.randperm(whole, generator=self.generator).tolist()
        batches = [grouped[number * self.batch_size :][: self.batch_size] for number in [*order, whole]]
        return iter([index for batch in batches for index in batch])


class TaskTrainer(Trainer):
    """Trains on the task's own loss, whatever the model class thinks of accumulated batches.

    The loss is the mean over the batch, computed here from the outputs: a model's own loss is N times too large
    under gradient accumulation where its class accepts loss keywords it ignores (stock BERT does). Evaluation is
    that of finished models (:func:`contraprune.prediction.evaluate`).

    Args:
        task: as the model answers it (``task.for_model``).
        evaluation: every evaluation split, encoded.
        options: those of ``transformers.Trainer``.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *, task: Task, evaluation: Mapping[str, datasets.Dataset], **options: Any) -> None:
        super().__init__(**options, eval_dataset=next(iter(evaluation.values())))
        self.task = task
        self.evaluation = dict(evaluation)
        self.model_accepts_loss_kwargs = False
        self._evaluated: tuple[int, dict[str, float]] | None = None
        self._unfinished: Path | None = None  # where a checkpoint is being written

    def train(self, *arguments: Any, **options: Any) -> Any:
        """The stock training; on a CPU, linear layers multiply by the faster of torch's two libraries."""
        with nullcontext() if self.args.torch_compile else fast_products(self.model):
            return super().train(*arguments, **options)

    def task_loss(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.task.objective.loss(outputs, inputs, label_smoothing=self.args.label_smoothing_factor)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        features = features_of(inputs, self.task.objective)
        answer = model(**features)
        loss = self.training_loss(self.task.outputs(answer, features), inputs)
        if not loss.detach().isfinite():  # before its gradients reach the weights
            raise self.divergence(self.state.global_step + 1, f"the loss is {loss.item()}")
        return (loss, answer) if return_outputs else loss

    def training_loss(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The loss of one training batch, a mean over its examples."""
        return self.task_loss(outputs, inputs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The task's metrics on its evaluation splits, and the mean loss against their targets."""
        self.refuse_divergence()
        found = evaluate(
            self.model,
            self.task,
            self.evaluation,
            self.data_collator,
            batch_size=self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm,
        )
        self._evaluated = (self.state.global_step, found.metrics)
        metrics = ({"loss": found.loss} if self.task.objective.targets else {}) | found.metrics
        logs = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)  # type: ignore[has-type]
        return logs

    @property
    def final_metrics(self) -> dict[str, float] | None:
        """The metrics after the last step, if that is when the last evaluation was."""
        step, metrics = self._evaluated or (None, None)
        return metrics if step == self.state.max_steps and not self.args.load_best_model_at_end else None

    def refuse_divergence(self) -> None:
        """Stops a run whose weights are not finite, before anything is saved from it.

        Raises:
            UserError: they are not.
        """
        for name, parameter in self.model.named_parameters():
            if not parameter.detach().isfinite().all():
                raise self.divergence(self.state.global_step, f"{name} is not finite")

    def divergence(self, step: int, what: str) -> UserError:
        """The error of a run that came to numbers that are not finite in a step."""
        parts = ", ".join(f"{name} {value:.4g}" for name, value in self.last_parts().items())
        kept = [folder.name for folder in checkpoints(Path(self.args.output_dir))[-1:]] or ["no checkpoint"]
        return UserError(
            f"training diverged in step {step} of {self.state.max_steps}: {what}{f' ({parts})' if parts else ''}; "
            f"lower --learning_rate (it was {self.args.learning_rate:g}), or the weight of the part that grew; "
            f"{kept[0]} is kept"
        )

    def last_parts(self) -> dict[str, float]:
        """The parts of the last batch's loss, where it has several."""
        return {}

    # ---- checkpoints ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The stock checkpoint of a model that has not diverged, whole or absent; older ones go when it is there."""
        self.refuse_divergence()
        folder = Path(self.args.output_dir)
        unfinished = folder / "unfinished"
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._unfinished = unfinished
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._unfinished = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            replace_folder(unfinished / name, folder / name)
            unfinished.rmdir()
            if self.args.save_total_limit:
                for old in checkpoints(folder)[: -self.args.save_total_limit]:
                    shutil.rmtree(old, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(batch_size, list(self.train_dataset["length"]), seed=seed)


@contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """Names a checkpoint that holds something else than this run's state, such as code, which is never run."""
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(f"{checkpoint}: not a checkpoint of this run ({reason:.160}); delete it") from error


@dataclass(kw_only=True)
class Knowledge:
    """What the shrinking model is held to: one bank per source, and the teacher's cached outputs.

    Attributes:
        classes: the class of every training example, for contrast by label; None where there are none.
    """

    banks: dict[str, Bank]
    teacher_outputs: RowFile | None
    classes: Int[Tensor, " examples"] | None


class ContrastTrainer(TaskTrainer):
    """Trains a model with the losses of Contrastive Pruning; by itself, a model that was shrunk before.

    Args:
        contrast: weights and temperatures of the losses.
        knowledge: the banks (their snapshots grow during training) and the teacher's outputs.
        reader: reads the anchors off the model's forward pass.
        options: those of :class:`TaskTrainer`. The training set has a column ``idx``.

    Attributes:
        density: what is left of the encoder's weights in a model that was shrunk, for the log.
    """

    def __init__(self, *, contrast: ContrastConfig, knowledge: Knowledge, reader: Reader, **options: Any) -> None:
        super().__init__(**options)
        self.contrast = contrast
        self.knowledge = knowledge
        self.reader = reader
        self.density: float | None = None
        self._parts: dict[str, Tensor] = {}
        self._parts_batches = 0
        self._last_parts: dict[str, Tensor] = {}
        self._last_draw = (-1, 0)

    # ---- loss ----

    def training_loss(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        terms = dict(self._terms(outputs, inputs, self._next_draw()))
        self._last_parts = {name: value.detach() for name, (_, value) in terms.items()}
        for name, value in self._last_parts.items():
            self._parts[name] = self._parts.get(name, torch.zeros_like(value)) + value
        self._parts_batches += 1
        return torch.stack([weight * value for weight, value in terms.values()]).sum()

    def loss_for_importance(
        self, outputs: Tensor, inputs: Mapping[str, Tensor], part: Part, draw: tuple[int, ...]
    ) -> Tensor:
        """The same loss outside training: what it is differentiated for is not logged.

        It is the part's share in the loss of the whole batch: what all processes get adds up to that.

        Without targets it has, in their place, the loss against targets drawn from the model's own predictions:
        held to a teacher alone, a model that still equals it has no gradient, so that any unit would do.

        Args:
            draw: with the run's seed, seeds the drawn extra examples.
        """
        losses = [weight * value for _, (weight, value) in self._terms(outputs, inputs, draw)]
        config, objective = self.contrast, self.task.objective
        if not objective.targets:
            draws = Draws(seeded(self.args.seed, *draw), part)
            sampled = objective.sampled_loss(outputs, inputs, temperature=config.kd_temperature, draws=draws)
            losses.append(config.kd_weight * sampled)
        return torch.stack(losses).sum() * part.share

    def take_no_part_in_importance(self) -> None:
        """What a process does that has no example of a batch, while the others compute its loss."""
        device = self.args.device
        anchors = torch.empty(0, self.model.config.hidden_size, device=device)
        self._of_other_processes(anchors, torch.empty(0, dtype=torch.long, device=device))

    def _terms(
        self, outputs: Tensor, inputs: Mapping[str, Tensor], draw: tuple[int, ...]
    ) -> Iterator[tuple[str, tuple[float, Tensor]]]:
        """(name, (weight, value)) of every part of the loss."""
        config, objective, ids = self.contrast, self.task.objective, inputs["idx"]
        if objective.targets:
            yield "ce", (config.ce_weight, self.task_loss(outputs, inputs))
        if self.knowledge.teacher_outputs is not None:
            teacher = self.knowledge.teacher_outputs[ids.cpu().numpy()].to(outputs.device)
            if objective.per_token:
                teacher = unpack_tokens(teacher, inputs["attention_mask"], width=outputs.shape[-1])
            kd = objective.distillation(outputs, teacher, inputs, temperature=config.kd_temperature)
            yield "kd", (config.kd_weight, kd)
        classes = self.knowledge.classes
        labels = None if classes is None else classes[ids.cpu()].to(ids.device)
        supervised = config.supervised_weight > 0 and labels is not None
        anchors = self.reader.take(inputs["attention_mask"])
        others, batch_ids = self._of_other_processes(anchors, ids)
        for number, (source, bank) in enumerate(self.knowledge.banks.items()):
            if not bank.files:  # no snapshot yet
                continue
            rng = np.random.default_rng([self.args.seed, *draw, number])
            found = bank.candidates(batch_ids, extra_examples=config.extra_examples, rng=rng)
            rows, row_ids, row_labels = others.joined(found)
            terms = source_terms(
                anchors,
                ids,
                labels,
                rows.to(anchors.device),
                row_ids.to(anchors.device),
                None if row_labels is None else row_labels.to(anchors.device),
                temperature=config.temperature,
                normalization=config.normalization,
                unsupervised=config.unsupervised_weight > 0,
                supervised=supervised,
            )
            if config.unsupervised_weight > 0:
                yield f"{source}_unsupervised", (config.unsupervised_weight, terms.unsupervised)
            if supervised:
                yield f"{source}_supervised", (config.supervised_weight, terms.supervised)

    def _of_other_processes(
        self, anchors: Float[Tensor, "batch dim"], ids: Int[Tensor, " batch"]
    ) -> tuple[Candidates, Int[Tensor, " all"]]:
        """The anchors of the other processes, candidates like those of this one; and the ids of all processes.

        So the loss is that of the whole batch of a step, however many processes share it.
        """
        if self.args.world_size == 1:
            rows, row_ids, all_ids = anchors.new_empty(0, anchors.shape[1]), ids.new_empty(0), ids
        else:
            mine, most = F.normalize(anchors.detach().float(), dim=-1), self.args.train_batch_size
            found = gather_examples(mine, ids, most=most, accelerator=self.accelerator)
            rows, row_ids, all_ids = found.rows[found.elsewhere].cpu(), found.ids[found.elsewhere], found.ids
        classes, row_ids = self.knowledge.classes, row_ids.cpu()
        return Candidates(rows, row_ids, None if classes is None else classes[row_ids]), all_ids

    def _next_draw(self) -> tuple[int, int]:
        """(optimiser step, batch within it): seeds the drawn examples, so that a resumed run draws the same."""
        step, batch = self._last_draw
        self._last_draw = (step, batch + 1) if step == self.state.global_step else (self.state.global_step, 0)
        return self._last_draw

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.mean_parts()
            if self.density is not None:
                logs["density"] = self.density
            self._parts, self._parts_batches = {}, 0
        super().log(logs, start_time)

    def last_parts(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._last_parts.items()}

    def mean_parts(self) -> dict[str, float]:
        """Every part of the loss, unweighted: its mean over the batches since the last log."""
        if not self._parts:
            return {}
        means = torch.stack([value.float() for value in self._parts.values()]) / self._parts_batches
        means = self.accelerator.reduce(means, reduction="mean")
        return {f"loss_{name}": value for name, value in zip(self._parts, means.tolist(), strict=True)}

    # ---- what transformers.Trainer has to know ----

    def _set_signature_columns_if_needed(self) -> None:
        fresh = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if fresh:
            self._signature_columns.append("idx")


class MaskedTrainer(ContrastTrainer):
    """A :class:`ContrastTrainer` of a model with masks.

    Args:
        criterion: its learned scores, if any, get their own learning rate; its penalty, if any, is added to the loss
            in every step; its state is checkpointed.
    """

    def __init__(self, *, criterion: Criterion, **options: Any) -> None:
        super().__init__(**options)
        self.criterion = criterion
        self.masks_restored = False
        self._penalty: tuple[float, Tensor] | None = None

    def finish_gradients(self) -> None:
        """What has to happen to the gradients between clipping and the optimiser's step.

        The penalty of the criterion comes in here: its weight is steered over orders of magnitude, and clipping it
        together with the loss would let it drown what the weights learn.
        """
        self.criterion.observe_gradients()
        for linear in self.criterion.linears.values():
            linear.drop_masked_gradient()
        self._penalty = self.criterion.penalty()
        if self._penalty is not None:
            weight, value = self._penalty
            (weight * value).backward()

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The stock evaluation, which here takes no random number from the training: a resumed run draws the same."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the density as it is now, and the criterion's penalty with its weight in the last step."""
        if "loss" in logs:
            masks = [linear.mask for linear in self.criterion.linears.values()]
            logs["density"] = sum(int(m.count_nonzero()) for m in masks) / sum(m.numel() for m in masks)
            if self._penalty is not None:
                logs["penalty_weight"], logs["penalty"] = self._penalty[0], self._penalty[1].item()
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The stock optimiser over the weights, plus a group of the scores with their own learning rate."""
        scores = [s for linear in self.criterion.linears.values() if (s := linear.mask_scores) is not None]
        if self.optimizer is None:  # type: ignore[has-type]
            for score in scores:
                score.requires_grad_(False)
            optimizer = super().create_optimizer(model)
            for score in scores:
                score.requires_grad_(True)
            if scores:
                optimizer.add_param_group({"params": scores, "lr": 0.0, "weight_decay": 0.0, "of_scores": True})
            self.optimizer = optimizer
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The stock scheduler; the learning rate of the scores may depend on the length of the run, known here."""
        for group in (optimizer or self.optimizer).param_groups:
            if group.get("of_scores"):
                group["lr"] = self.criterion.score_learning_rate(num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- checkpoints: the masks and the criterion's own tensors, beside the stock files ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            masks = {f"mask.{name}": _smallest(linear.mask) for name, linear in self.criterion.linears.items()}
            state = {f"criterion.{key}": value.contiguous() for key, value in self.criterion.state().items()}
            save_file(masks | state, Path(output_dir) / PRUNING_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / PRUNING_STATE
        if not file.is_file():
            raise UserError(f"{checkpoint}: not a checkpoint of a pruning run, it has no {PRUNING_STATE}")
        state = load_file(file, device=str(self.args.device))
        for name, linear in self.criterion.linears.items():
            linear.set_mask(state[f"mask.{name}"])
        prefix = "criterion."
        self.criterion.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.masks_restored = True


def _smallest(mask: Tensor) -> Tensor:
    """A mask of zeros and ones as booleans, any other as it is."""
    binary = mask.bool()
    return binary if torch.equal(binary.to(mask.dtype), mask) else mask
