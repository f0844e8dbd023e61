"""Predictions that are no numbers are refused; what is right about the others, the tests of the tasks ask."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import contraprune
from contraprune import UserError
from contraprune.cli import main
from contraprune.trainer import TaskTrainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_outputs_are_no_numbers_is_refused(tiny, tmp_path, capsys, value):
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "teacher")
    with torch.no_grad():
        model.classifier.bias[0] = value
    model.save_pretrained(tmp_path / "damaged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "damaged" / name).write_bytes((tiny / "teacher" / name).read_bytes())
    flags = ["--task=toy", "--max_eval_samples=8", "--max_length=16", "--quiet=true"]
    assert main(["evaluate", str(tmp_path / "damaged"), *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("contraprune: the model's outputs are not finite numbers: its weights are damaged")


def test_weights_that_diverged_in_the_last_step_before_an_evaluation_are_named(tiny_options, monkeypatch):
    step = TaskTrainer.training_step

    def diverging(self, model, *arguments, **options):
        loss = step(self, model, *arguments, **options)
        if self.state.global_step == 3:  # the last step of an epoch of four
            model.classifier.bias.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(TaskTrainer, "training_step", diverging)
    options = {key: tiny_options[key] for key in ("task", "max_train_samples", "max_length", "use_cpu", "output_dir")}
    with pytest.raises(UserError, match=r"training diverged in step 4 of \d+: .* is not finite"):
        contraprune.finetune(model=tiny_options["model"], **options, num_train_epochs=2, eval_strategy="epoch",
                             max_grad_norm=0, per_device_train_batch_size=16, disable_tqdm=True)  # fmt: skip
