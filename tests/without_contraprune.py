"""What a user does with pruned models where contraprune is not installed; run as a script by the tests.

Arguments: a folder with one model directory for each family, and a folder to write results to.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.modules["contraprune"] = None  # importing it fails

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from tiny_models import batch


def main(models: Path, results: Path) -> None:
    torch.set_num_threads(1)
    report: dict[str, object] = {}
    with torch.no_grad():
        for path in sorted(models.iterdir()):
            model = task_class(path).from_pretrained(path, trust_remote_code=True)
            base = AutoModel.from_pretrained(path, trust_remote_code=True)
            model.save_pretrained(results / path.name / "again")
            base.save_pretrained(results / path.name / "base")
            again = task_class(path).from_pretrained(results / path.name / "again", trust_remote_code=True)
            tensors = {"logits": model(**batch()).logits, "again": again(**batch()).logits}
            if path.name != "t5":  # whose AutoModel has a decoder
                tensors["base"] = base(**batch())[0]
            torch.save(tensors, results / path.name / "tensors.pt")
            report[path.name] = failure(lambda path=path: task_class(path).from_pretrained(path))
    bert = models / "bert"
    classify = pipeline("text-classification", model=str(bert), trust_remote_code=True)
    report["pipeline"] = classify("the film is good", top_k=None)
    report["untrusted pipeline"] = failure(lambda: pipeline("text-classification", model=str(bert)))
    for name in ("whole", "resumed"):
        model = AutoModelForSequenceClassification.from_pretrained(bert, trust_remote_code=True)
        train(model, results / "training", resume=name == "resumed").save_pretrained(results / name)
    (results / "report.json").write_text(json.dumps(report))


def task_class(path: Path) -> type:
    return AutoModelForTokenClassification if path.name == "t5" else AutoModelForSequenceClassification


def failure(load: object) -> str:
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return "loaded"


def train(model: PreTrainedModel, output_dir: Path, *, resume: bool) -> PreTrainedModel:
    """Four steps of a plain Trainer with a checkpoint after two, or the last two from there."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    rows = batch()
    dataset = [{name: rows[name][i] for name in rows} | {"labels": i % 3} for i in (0, 1, 2, 3)] * 2
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=str(output_dir / "checkpoint-2") if resume else None)
    return model.eval()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
