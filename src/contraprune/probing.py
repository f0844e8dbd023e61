"""The generalisation probe of the paper: how well linear heads on a frozen encoder solve other tasks.

The head is fitted by scikit-learn, not trained with gradient steps: logistic regression (Ridge for numbers) is
convex, so that the result depends on the representations alone, not on an optimiser, its settings or a seed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from contraprune.config import EvaluationConfig
from contraprune.encoding import Reader, features_of, readable
from contraprune.errors import UserError
from contraprune.files import model_in
from contraprune.objectives import OneLabel, Value
from contraprune.padding import require_padding
from contraprune.pooling import Pooling
from contraprune.products import fast_products
from contraprune.progress import progress as tracked
from contraprune.saving import load_config, load_for_finetuning, load_tokenizer
from contraprune.settings import setting
from contraprune.structure import text_length
from contraprune.tasks import Task, load_task

FOLDS = 5
C = tuple(10.0**power for power in range(-5, 2))
"""Inverse regularisation of the logistic regression."""
ALPHA = tuple(10.0**power for power in range(0, 7))
"""Regularisation of the Ridge regression."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What to probe, on which tasks."""

    _argument_group_name: ClassVar[str] = "probe"

    tasks: str = setting("", "Tasks, joined by commas: of classification or regression, such as rte,cola,stsb.")
    data_dir: str | None = setting(None, "Folder with a sub-folder of data files for each task. Default: the hub.")
    against: list[str] | None = setting(None, "Models to compare with: directories or hub names.")
    pooling: Literal["cls", "mean"] = setting(
        "mean", "Sentence representation: the mean over tokens, or the pooler output or first token (cls)."
    )
    max_train_samples: int | None = setting(None, "Use only the first N training rows of each task.")
    max_eval_samples: int | None = setting(None, "Use only the first N validation rows of each task.")
    max_length: int | None = setting(
        None,
        f"Texts are cut to this many tokens. Default: {Task.default_max_length}, or as many as all models have "
        "positions for.",
    )

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"--tasks: expected names of different tasks, joined by commas, found {self.tasks!r}")
        if self.max_length is not None and self.max_length < 4:
            raise UserError(f"--max_length: expected at least 4, found {self.max_length}")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.tasks.split(",") if name.strip()]


def probe(model: str, config: ProbeConfig, evaluation: EvaluationConfig) -> dict[str, Any]:
    """Probes a model, and those it is compared with, on every task.

    Each encoder reads each data set once. The head sees standardised representations; its regularisation is chosen
    by cross-validation on the training set, by the likelihood (the squared error of numbers).

    Returns:
        ``models`` (the names); ``tasks``: for each its ``metric`` (the task's main one), rows of ``train`` and
        ``validation``, the score of the best ``constant`` answer, and ``scores`` by model; the ``mean`` over the tasks
        by model.

    Raises:
        UserError: a model or a data set cannot be used.
    """
    models = [model, *(config.against or [])]
    if len(set(models)) < len(models):
        raise UserError("--against: expected different models")
    configs = {path: load_config(model_in(path)) for path in models}
    max_length = text_length(config.max_length, default=Task.default_max_length, models=configs)
    tasks = {name: _load(name, config) for name in config.names}
    scores: dict[str, dict[str, float]] = {name: {} for name in tasks}
    for path in models:
        encoder = load_encoder(model_in(path))
        tokenizer = load_tokenizer(model_in(path))
        require_padding(tokenizer, encoder.model.config, name=path)
        for name, task in tasks.items():
            scores[name][path] = _score(
                encoder, tokenizer, task, config, evaluation, max_length=max_length, description=f"{path}, {name}"
            )
    found = {}
    for name, task in tasks.items():
        train, validation = _splits(task)
        found[name] = {
            "metric": task.main_metric,
            "train": len(train),
            "validation": len(validation),
            "constant": _constant(task),
            "scores": scores[name],
        }
    mean = {path: float(np.mean([scores[name][path] for name in tasks])) for path in models}
    return {"models": models, "pooling": config.pooling, "tasks": found, "mean": mean}


class Encoder:
    """A frozen encoder, in eval mode, on a GPU where there is one.

    Attributes:
        use_pooler: whether its pooler came with it: a new one represents nothing.
    """

    def __init__(self, model: PreTrainedModel, *, use_pooler: bool) -> None:
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.use_pooler = use_pooler

    @torch.inference_mode()
    def representations(
        self,
        task: Task,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        pooling: Pooling,
        batch_size: int,
        description: str,
        progress: bool,
    ) -> Float[np.ndarray, "rows dim"]:
        """The representation of every row, in order, not normalised; in batches sorted by length."""
        encoded = readable(task.encode(rows, tokenizer, max_length=max_length), self.model, task.objective)
        order = sorted(range(len(encoded)), key=encoded["length"].__getitem__, reverse=True)
        loader = DataLoader(
            encoded.select(order).remove_columns("length"), batch_size=batch_size, collate_fn=task.collator(tokenizer)
        )
        reader = Reader(self.model, pooling=pooling, use_pooler=self.use_pooler)
        found = np.empty((len(encoded), self.model.config.hidden_size), dtype=np.float32)
        device = self.model.device
        with fast_products(self.model):
            for batch in tracked(loader, description, show=progress):
                features = {name: value.to(device) for name, value in features_of(batch, task.objective).items()}
                self.model(**features)
                found[batch["idx"].numpy()] = reader.take(features["attention_mask"]).float().cpu().numpy()
        reader.remove()
        return found


def load_encoder(path: str) -> Encoder:
    """The encoder of a model directory or hub name, whatever its head; shrunk ones too.

    Raises:
        UserError: nothing is there, or weights of the encoder are missing.
    """
    model, missing = load_for_finetuning(AutoModel, path)
    if lacking := [name for name in missing if "pooler" not in name.split(".")]:
        raise UserError(f"{path}: its weights lack {len(lacking)} parameters of the encoder, first {lacking[0]}")
    if model.config.is_encoder_decoder:
        raise UserError(f"{path}: expected an encoder, found a model with a decoder ({model.config.model_type})")
    return Encoder(model, use_pooler=not missing)


def _load(name: str, config: ProbeConfig) -> Task:
    task = load_task(
        task=name,
        task_type=None,
        data_dir=None if config.data_dir is None else str(Path(config.data_dir) / name),
        train_file=None,
        validation_file=None,
        text_columns=None,
        label_column=None,
        max_train_samples=config.max_train_samples,
        max_eval_samples=config.max_eval_samples,
        seed=0,
    )
    if not isinstance(task.objective, OneLabel | Value):
        raise UserError(f"--tasks: expected tasks of classification or regression, found {name}")
    train, _ = _splits(task)
    if isinstance(task.objective, OneLabel):
        labels, counts = np.unique(train["label"], return_counts=True)
        if len(labels) < 2 or counts.min() < 2:
            found = ", ".join(f"{n} of '{task.label_names[label]}'" for label, n in zip(labels, counts, strict=True))
            raise UserError(f"{name}: expected two classes, of each two training rows or more, found {found}")
    elif len(train) < 2:
        raise UserError(f"{name}: expected at least two training rows, found {len(train)}")
    return task


def _splits(task: Task) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The training rows, and those of the first evaluation split."""
    assert task.train is not None
    return task.train, next(iter(task.evaluation.values()))


def _score(
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    config: ProbeConfig,
    evaluation: EvaluationConfig,
    *,
    max_length: int,
    description: str,
) -> float:
    train, validation = _splits(task)
    representations = [
        encoder.representations(
            task,
            rows,
            tokenizer,
            max_length=max_length,
            pooling=config.pooling,
            batch_size=evaluation.batch_size,
            description=description,
            progress=not evaluation.quiet,
        )
        for rows in (train, validation)
    ]
    head = fit_head(representations[0], np.asarray(train["label"]), classes=isinstance(task.objective, OneLabel))
    return _metric(task, _answers(task, head, representations[1]))


def fit_head(representations: Float[np.ndarray, "rows dim"], labels: np.ndarray, *, classes: bool) -> Any:
    """A linear head, as a fitted scikit-learn estimator.

    Args:
        labels: (rows,) class ids if ``classes``, else numbers.
    """
    if classes:
        folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
            {"logisticregression__C": C},
            cv=StratifiedKFold(folds, shuffle=True, random_state=0),
            scoring="neg_log_loss",
        )
    else:
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": ALPHA},
            cv=KFold(min(FOLDS, len(labels)), shuffle=True, random_state=0),
            scoring="neg_mean_squared_error",
        )
    return search.fit(representations, labels)


def _answers(task: Task, head: Any, representations: Float[np.ndarray, "rows dim"]) -> np.ndarray:
    """What the head says, in the form of a model's outputs."""
    if isinstance(task.objective, Value):
        return np.asarray(head.predict(representations))[:, None]
    answers = np.full((len(representations), len(task.label_names)), -np.inf)
    answers[:, head.classes_] = head.predict_proba(representations)
    return answers


def _constant(task: Task) -> float:
    """The score of the most frequent class of the training set, or of any one number."""
    train, validation = _splits(task)
    answer = np.zeros((1, 1))
    if isinstance(task.objective, OneLabel):
        answer = np.bincount(train["label"], minlength=len(task.label_names))[None].astype(float)
    return _metric(task, np.repeat(answer, len(validation), axis=0))


def _metric(task: Task, answers: np.ndarray) -> float:
    _, validation = _splits(task)
    return task.metrics(list(answers), validation, validation)[task.main_metric]
