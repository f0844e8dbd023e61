"""Taylor importance against the released code, and the removal it leads to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contraprune.contrastive import source_loss
from contraprune.criteria.taylor import keep_after_removal, taylor_importance
from contraprune.distillation import distillation_loss
from contraprune.structure import find_layers
from reference import golden_bert
from tiny_models import FAMILIES, batch


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("loss", ["ce", "kd"])
def test_importance_is_the_released_one(golden, loss, normalise):
    values = np.load(golden / "tiny_bert_importance.npz")
    student, teacher = golden_bert(golden, "student"), golden_bert(golden, "teacher").eval()
    student.train()  # left as found, but rated in eval mode
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    columns = {name: torch.tensor(values[name]) for name in names}
    batches = [{name: column[start : start + 16] for name, column in columns.items()} for start in (0, 16, 32)]

    def loss_of(batch):
        features = {name: column for name, column in batch.items() if name != "labels"}
        logits = student(**features).logits
        cross_entropy = F.cross_entropy(logits, batch["labels"])
        if loss == "ce":
            return cross_entropy
        with torch.no_grad():
            target = teacher(**features).logits
        return 0.1 * cross_entropy + 0.9 * distillation_loss(logits, target, temperature=1.0)

    found = taylor_importance(
        student, find_layers(student), batches, loss_of, reduce=lambda scores: scores, normalise=normalise
    )
    assert student.training
    kind = "norm" if normalise else "raw"
    for name, scores in (("head", found.heads), ("mlp", found.neurons)):
        expected = torch.tensor(values[f"{loss}_allones/{name}_{kind}"])
        torch.testing.assert_close(torch.stack(scores), expected, rtol=1e-4, atol=1e-6)


def test_importance_under_the_full_loss_is_the_released_one(golden):
    values = {name: torch.from_numpy(array) for name, array in np.load(golden / "tiny_bert_importance.npz").items()}
    student, teacher = golden_bert(golden, "student"), golden_bert(golden, "teacher").eval()
    features = {name: values[name] for name in ("input_ids", "attention_mask", "token_type_ids")}

    def loss_of(number):
        ids = torch.arange(16 * number, min(16 * number + 16, 40))
        batch = {name: column[ids] for name, column in features.items()}
        output = student.bert(**batch)
        logits, labels = student.classifier(output.pooler_output), values["labels"]
        with torch.no_grad():
            target = teacher(**batch).logits
        loss = 0.1 * F.cross_entropy(logits, labels[ids]) + 0.9 * distillation_loss(logits, target, temperature=1.0)
        for call, source in enumerate(("pretrained", "finetuned", "snaps"), start=3 * number):
            bank = values[f"bank_{source}"]
            chosen = torch.cat([ids, values[f"full_loss/extra_idx_call{call}"]])
            row_ids = chosen.repeat_interleave(bank.shape[1])
            loss = loss + source_loss(
                output.pooler_output,
                ids,
                labels[ids],
                bank[chosen].flatten(0, 1),
                row_ids,
                labels[row_ids],
                temperature=0.1,
                unsupervised_weight=0.3,
                supervised_weight=3.0,
                normalization="released",
            )
        return loss

    found = taylor_importance(
        student, find_layers(student), range(3), loss_of, reduce=lambda scores: scores, normalise=True
    )
    for name, scores in (("head", found.heads), ("mlp", found.neurons)):
        expected = values[f"full_loss/{name}_norm"]
        torch.testing.assert_close(torch.stack(scores), expected, rtol=1e-3, atol=1e-5)


def test_processes_that_share_batches_find_what_one_process_finds():
    """Two processes, played one after the other; of the last batch one has no example."""
    model = FAMILIES["bert"].build()
    layers = find_layers(model)
    columns = {name: torch.cat([batch(seed)[name] for seed in (1, 2, 3)]) for name in batch()}
    batches = [range(5), range(5, 10), range(10, 11)]

    def loss_of(examples):
        logits = model(**{name: column[list(examples)] for name, column in columns.items()}).logits
        return F.cross_entropy(logits, torch.tensor([number % 3 for number in examples]))

    def importance(parts, reduce):
        found = taylor_importance(
            model,
            layers,
            zip(batches, parts, strict=True),
            lambda both: loss_of(both[1]) * len(both[1]) / len(both[0]) if both[1] else None,
            reduce=reduce,
            normalise=False,
        )
        return torch.cat([*found.heads, *found.neurons])

    sent = []
    importance([whole[3:] for whole in batches], lambda gradients: sent.append(gradients) or gradients)
    found = importance([whole[:3] for whole in batches], lambda gradients: gradients + sent.pop(0))
    expected = importance(batches, lambda gradients: gradients)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected.min() > 1e-4


def test_layers_of_different_widths_compete_and_each_keeps_one():
    importance = [torch.tensor([0.1, 0.2]), torch.tensor([0.9, 0.05, 0.8]), torch.tensor([0.01])]
    kept = keep_after_removal(importance, 2, keep_at_least=1)
    assert [mask.tolist() for mask in kept] == [[False, True], [True, False, True], [True]]
    with pytest.raises(ValueError, match="only 3 may go"):
        keep_after_removal(importance, 4, keep_at_least=1)
    everything = keep_after_removal(importance, 6, keep_at_least=0)
    assert not any(mask.any() for mask in everything)
