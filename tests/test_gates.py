from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from contraprune.gates import accumulate, attach_gates, normalise_per_layer
from contraprune.structure import find_layers
from tiny_models import FAMILIES, Family, batch

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def golden_model(golden: Path, name: str) -> tuple[BertForSequenceClassification, dict[str, Tensor]]:
    """The tiny BERT whose importance the released code computed, and the released model's own masks."""
    weights = load_file(golden / f"tiny_bert_{name}.safetensors")
    masks = {key: weights.pop(key) for key in list(weights) if key.endswith("_mask")}
    model = BertForSequenceClassification(BertConfig.from_json_file(golden / "tiny_bert_config.json")).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert all("position_ids" in key for key in [*missing, *unexpected])
    return model, masks


@pytest.mark.parametrize("masks", ["allones", "masked"])
@pytest.mark.parametrize("loss", ["ce", "kd"])
def test_importance_equals_the_released_code(golden: Path, loss: str, masks: str) -> None:
    values = {key: torch.from_numpy(v) for key, v in np.load(golden / "tiny_bert_importance.npz").items()}
    student, _ = golden_model(golden, "student")
    teacher, _ = golden_model(golden, "teacher")
    layers = find_layers(student)
    with attach_gates(student, layers, requires_grad=True) as gates:
        if masks == "masked":
            for index in range(len(layers)):
                gates.heads[index].data.copy_(values["head_mask"][index])
                gates.neurons[index].data.copy_(values["intermediate_mask"][index])
        heads = [torch.zeros_like(gate) for gate in gates.heads]
        neurons = [torch.zeros_like(gate) for gate in gates.neurons]
        for rows in torch.arange(len(values["labels"])).split(16):
            inputs = {key: values[key][rows] for key in INPUTS}
            logits = student(**inputs).logits
            total = F.cross_entropy(logits, values["labels"][rows])
            if loss == "kd":
                with torch.no_grad():
                    target = teacher(**inputs).logits.softmax(-1)
                total = 0.1 * total + 0.9 * F.kl_div(logits.log_softmax(-1), target, reduction="batchmean")
            of_heads, of_neurons = gates.gradients(total)
            heads, neurons = accumulate(heads, of_heads), accumulate(neurons, of_neurons)
    for name, found in (("head", heads), ("mlp", neurons)):
        torch.testing.assert_close(torch.stack(found), values[f"{loss}_{masks}/{name}_raw"], rtol=1e-5, atol=1e-7)
        normalised = torch.stack(normalise_per_layer(found))
        torch.testing.assert_close(normalised, values[f"{loss}_{masks}/{name}_norm"], rtol=1e-5, atol=1e-7)


def test_masked_logits_equal_the_released_code(golden: Path) -> None:
    values = {key: torch.from_numpy(v) for key, v in np.load(golden / "tiny_bert_importance.npz").items()}
    student, _ = golden_model(golden, "student")
    inputs = {key: values[key][:8] for key in INPUTS}
    with torch.no_grad(), attach_gates(student, find_layers(student)) as gates:
        for index in range(2):
            gates.heads[index].copy_(values["head_mask"][index])
            gates.neurons[index].copy_(values["intermediate_mask"][index])
        masked = student(**inputs).logits
    torch.testing.assert_close(masked, values["eval_logits_first8_masked"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_gate_of_zero_is_zeroed_output_weights(family: Family, attention: str) -> None:
    if attention == "sdpa" and not family.has_sdpa:
        pytest.skip("transformers has no sdpa for it")
    model = family.build(attention)
    layer = find_layers(model)[-1]
    plain = model(**batch()).logits
    with attach_gates(model, find_layers(model)) as gates:
        assert torch.equal(model(**batch()).logits, plain)
        gates.heads[-1][1] = 0
        gates.neurons[-1][3:5] = 0
        gated = model(**batch()).logits
    assert torch.equal(model(**batch()).logits, plain)

    width = layer.heads.head_size * layer.heads.queries_per_head
    with torch.no_grad():
        for consumer, columns in (
            (layer.heads.consumer.module, slice(width, 2 * width)),
            (layer.neurons.consumer.module, slice(3, 5)),
        ):
            if family.model_type == "gpt2":
                consumer.weight[columns] = 0
            else:
                consumer.weight[:, columns] = 0
    torch.testing.assert_close(gated, model(**batch()).logits, rtol=1e-4, atol=1e-5)
    assert (gated - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "albert", "llama", "t5"])
def test_gradients_equal_finite_differences(name: str) -> None:
    model = FAMILIES[name].build().double()
    with attach_gates(model, find_layers(model), requires_grad=True) as gates:

        def loss() -> Tensor:
            return model(**batch()).logits.square().mean()

        heads, neurons = gates.gradients(loss())
        for gate, gradient, unit in ((gates.heads[0], heads[0], 2), (gates.neurons[-1], neurons[-1], 7)):
            values = []
            for value in (1 + 1e-3, 1 - 1e-3):
                gate.data[unit] = value
                values.append(loss().item())
            gate.data[unit] = 1
            slope = (values[0] - values[1]) / 2e-3
            assert gradient[unit].item() == pytest.approx(slope, rel=1e-2, abs=1e-6)
            assert abs(slope) > 1e-4


def test_gradients_leave_the_weights_alone() -> None:
    model = FAMILIES["bert"].build()
    with attach_gates(model, find_layers(model), requires_grad=True) as gates:
        gates.gradients(model(**batch()).logits.sum())
        assert all(gate.grad is None for gate in (*gates.heads, *gates.neurons))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gates_of_a_half_precision_model_are_float32() -> None:
    model = FAMILIES["bert"].build().bfloat16()
    with attach_gates(model, find_layers(model), requires_grad=True) as gates:
        heads, _ = gates.gradients(model(**batch()).logits.float().square().mean())
    assert {gate.dtype for gate in gates.heads} == {gradient.dtype for gradient in heads} == {torch.float32}


def test_a_layer_without_importance_stays_zero() -> None:
    zero, other = normalise_per_layer([torch.zeros(3), torch.tensor([3.0, 4.0])])
    assert zero.tolist() == [0, 0, 0]
    torch.testing.assert_close(other, torch.tensor([0.6, 0.8]))


def test_layers_of_another_model_are_refused() -> None:
    with pytest.raises(AssertionError, match="another model"):
        attach_gates(FAMILIES["bert"].build(), find_layers(FAMILIES["bert"].build()))
