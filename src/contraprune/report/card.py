"""The model card: ``README.md`` with the metadata of the Hugging Face hub, from the run's own numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from contraprune.report.parts import readable
from contraprune.report.record import Run, read_run, shown_settings
from contraprune.runs import RunDirectory
from contraprune.saving import write_text
from contraprune.tasks import published_name

_CARDS = Environment(  # Markdown, not HTML: nothing to escape
    loader=PackageLoader("contraprune.report", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
_METRICS = {  # names of the hub, where they differ from ours
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "f1_micro": "f1",
    "f1_macro": "f1",
    "average_precision_micro": "average_precision",
}
_TOLD = (
    "model", "teacher", "method", "density", "pattern", "block", "stages", "contrast", "unsupervised_weight",
    "supervised_weight", "temperature", "normalization", "ce_weight", "kd_weight", "kd_temperature", "num_train_epochs",
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
)  # fmt: skip


def write_card(path: Path, *, repository: str | None = None) -> None:
    """Writes the card of the finished run at ``path``, to its ``README.md`` and beside the model.

    Args:
        repository: where the model goes on the hub, for the example of its use.

    Raises:
        UserError: a file of the run is damaged.
    """
    run = read_run(path)
    text = str(card(run, repository=repository))
    write_text(RunDirectory(path).card, text)
    write_text(run.model / "README.md", text)


def card(run: Run, *, repository: str | None = None) -> ModelCard:
    """The card of a run."""
    config = json.loads((run.model / "config.json").read_text(encoding="utf-8"))
    embeds = (run.model / "modules.json").is_file()
    pipeline = _pipeline(config, embeds)
    where = repository or "path/to/model"
    content = _CARDS.get_template("card.md").render(
        title=where.rpartition("/")[2] if repository else run.name,
        opening=_opening(run),
        metrics=run.results["metrics"],
        teacher=run.results.get("teacher_metrics"),
        facts=_facts(run),
        usage=_usage(config, pipeline, where),
        seed=run.results["seed"],
        versions=", ".join(f"{name} {run.environment[name]}" for name in ("torch", "transformers", "contraprune")
                           if name in run.environment),
        settings=list(shown_settings({key: run.options.get(key) for key in _TOLD})),
        limits=_limits(run),
        citation=run.pruned,
    )  # fmt: skip
    metadata = _metadata(run, pipeline, embeds, repository)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{content}")


def _metadata(run: Run, pipeline: str, embeds: bool, repository: str | None) -> ModelCardData:
    task = run.results["task"]
    dataset, configuration = published_name(run.options.get("task"))
    name = repository.rpartition("/")[2] if repository else run.name
    splits = [split for split in run.results.get("examples", {}) if split != "train"]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=dataset or task,
            dataset_name=task,
            dataset_config=configuration,
            dataset_split=splits[0] if len(splits) == 1 else None,
            metric_type=_METRICS.get(metric, metric),
            metric_name=readable(metric),
            metric_value=round(value, 6),
        )
        for metric, value in run.results["metrics"].items()
    ]
    tags = ["contraprune", "pruning", "contrastive-pruning", *["sparse"] * (not run.structured)] if run.pruned else []
    return ModelCardData(
        base_model=run.hub_models.get("teacher") or run.hub_models.get("model"),
        pipeline_tag=pipeline,
        library_name="sentence-transformers" if embeds else "transformers",
        datasets=[dataset] if dataset else None,
        metrics=list(dict.fromkeys(_METRICS.get(metric, metric) for metric in run.results["metrics"])),
        tags=tags or ["contraprune"],
        model_name=name,
        eval_results=results,
    )


def _pipeline(config: Mapping[str, Any], embeds: bool) -> str:
    architecture = (config.get("architectures") or [""])[0]
    if embeds:
        return "sentence-similarity"
    return next((tag for ending, tag in _PIPELINES.items() if architecture.endswith(ending)), "feature-extraction")


def _opening(run: Run) -> str:
    task = run.results["task"]
    if not run.pruned:
        return f"Fine-tuned on {task} with contraprune."
    density = f"{run.results['density']['encoder']:.1%}"
    what = "of the encoder's weights, in fewer heads and neurons" if run.structured else "of the encoder's weights"
    sources = run.results["contrast"]
    held = f", held to its {_joined(sources)} representations by contrastive losses" if sources else ""
    return f"A model of {task} pruned with contraprune (method `{run.results['method']}`) to {density} {what}{held}."


def _joined(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    words = [
        {"pretrained": "pre-trained", "snapshots": "snapshots'", "finetuned": "fine-tuned"}[name] for name in names
    ]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _facts(run: Run) -> list[str]:
    name, _ = run.metric
    error = run.standard_error()
    parameters = run.results["parameters"]
    if not run.pruned:
        facts = [f"{parameters['all']:,} parameters"]
    else:
        kind = "parameters" if run.structured else "non-zero parameters"
        facts = [f"{parameters['after']:,} {kind} of {parameters['before']:,}"]
        if run.results["retained"] is not None:
            facts.append(f"{run.results['retained']:.1%} of the teacher's {readable(name)} kept")
    if error is not None:
        facts.append(f"standard error of the {readable(name)}: {error:.4f}")
    return facts


def _usage(config: Mapping[str, Any], pipeline: str, where: str) -> str:
    code = ", trust_remote_code=True" if config.get("auto_map") else ""
    if pipeline == "sentence-similarity":
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{where}"{code})\nvectors = model.encode(["a sentence"])'
        )
    example = {
        "question-answering": 'model(question="Where does Jan live?", context="Jan lives in Rome.")',
        "token-classification": 'model("Jan lives in Rome.")',
    }.get(pipeline, 'model("a lovely film")')
    return f'from transformers import pipeline\n\nmodel = pipeline("{pipeline}", model="{where}"{code})\n{example}'


def _limits(run: Run) -> str:
    if not run.pruned:
        return "The model was evaluated on the data above alone."
    speed = (
        "Its matrices are smaller, so it is faster in any runtime; by how much was not measured in this run."
        if run.structured
        else "Its zeros are stored and multiplied like any weight by plain transformers, so it is there as large and "
        "slow as its teacher; contraprune's sparse format stores the rest alone."
    )
    return (
        "One run with one seed, evaluated on the data above alone. What the pruned model lost on other data, languages "
        f"or groups of people was not measured. {speed}"
    )
