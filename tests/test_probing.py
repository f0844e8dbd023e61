"""Linear heads on frozen encoders, against a plain loop: one text at a time, one fold and one strength at a time."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef
from sklearn.model_selection import KFold, StratifiedKFold
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import contraprune
from contraprune.cli import main
from contraprune.probing import ALPHA, C, load_encoder
from contraprune.tasks import toy
from tiny_models import FAMILIES

TRAIN, VALIDATION = 60, 40


@pytest.fixture(scope="module")
def probe_data(tmp_path_factory):
    """Sentences of the toy task as rows of CoLA, and pairs of them as rows of RTE and STS-B."""
    root = tmp_path_factory.mktemp("probe")
    rows = list(toy.load(0)["train"].values)[: 2 * (TRAIN + VALIDATION)]
    texts = [row["text"] for row in rows]
    signs = [row["label"] == "positive" for row in rows]
    files = {"cola": [], "rte": [], "stsb": []}
    for number in range(TRAIN + VALIDATION):
        first, second = texts[2 * number], texts[2 * number + 1]
        pair = {"sentence1": first, "sentence2": second}
        files["cola"].append({"sentence": first, "label": int(signs[2 * number])})
        files["rte"].append(pair | {"label": int(signs[2 * number] == signs[2 * number + 1])})
        files["stsb"].append(pair | {"label": len(first) / len(second)})
    for name, lines in files.items():
        (root / name).mkdir()
        for split, part in (("train", lines[:TRAIN]), ("validation", lines[TRAIN:])):
            text = "".join(json.dumps(line) + "\n" for line in part)
            (root / name / f"{split}.jsonl").write_text(text)
    return root


def flags(root, *extra):
    return ["--data_dir", str(root), "--max_length", "40", "--batch_size", "7", "--quiet", "--json", *extra]


def probed(capsys, model, root, *extra):
    assert main(["probe", str(model), *flags(root, *extra)]) == 0
    return json.loads(capsys.readouterr().out)


def read(root, task, split):
    rows = [json.loads(line) for line in (root / task / f"{split}.jsonl").read_text().splitlines()]
    return [[row["sentence"]] if "sentence" in row else [row["sentence1"], row["sentence2"]] for row in rows], [
        row["label"] for row in rows
    ]


def embedded(model, tokenizer, texts, pooling):
    """Representations of texts, one at a time: nothing is padded."""
    found = []
    for text in texts:
        with torch.no_grad():
            answer = model(**tokenizer(*text, return_tensors="pt"))
        mean = answer.last_hidden_state[0].mean(dim=0)
        found.append((mean if pooling == "mean" else answer.pooler_output[0]).numpy())
    return np.stack(found).astype(np.float64)


def standardised(train, *others):
    mean, std = train.mean(axis=0), train.std(axis=0)
    return [(values - mean) / std for values in (train, *others)]


def chosen(values, labels, strengths, folds, error):
    """The strength with the smallest mean error over the folds."""
    totals = []
    for strength in strengths:
        errors = []
        for kept, left in folds.split(values, labels):
            inside, outside = standardised(values[kept], values[left])
            errors.append(error(strength, inside, labels[kept], outside, labels[left]))
        totals.append(np.mean(errors))
    return strengths[int(np.argmin(totals))]


def log_loss(strength, train, labels, left, expected):
    probabilities = LogisticRegression(C=strength, max_iter=1000).fit(train, labels).predict_proba(left)
    return -np.mean(np.log(probabilities[np.arange(len(left)), expected]))


def squared_error(strength, train, labels, left, expected):
    return np.mean((Ridge(alpha=strength).fit(train, labels).predict(left) - expected) ** 2)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_scores_are_those_of_a_plain_loop(tiny, probe_data, capsys, pooling):
    path = tiny / "pretrained"
    found = probed(capsys, path, probe_data, "--tasks", "rte,cola,stsb", "--pooling", pooling)["tasks"]
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    for task in ("rte", "cola", "stsb"):
        (texts, labels), (asked, expected) = (read(probe_data, task, split) for split in ("train", "validation"))
        train, validation = (embedded(model, tokenizer, part, pooling) for part in (texts, asked))
        labels, expected = np.array(labels), np.array(expected)
        if task == "stsb":
            folds = KFold(5, shuffle=True, random_state=0)
            head = Ridge(alpha=chosen(train, labels, ALPHA, folds, squared_error))
        else:
            folds = StratifiedKFold(5, shuffle=True, random_state=0)
            head = LogisticRegression(C=chosen(train, labels, C, folds, log_loss), max_iter=1000)
        inside, outside = standardised(train, validation)
        predicted = head.fit(inside, labels).predict(outside)
        score = {
            "rte": lambda p, e: np.mean(p == e),
            "cola": lambda p, e: matthews_corrcoef(e, p),
            "stsb": lambda p, e: spearmanr(p, e).statistic,
        }[task](predicted, expected)
        assert found[task]["scores"] == {str(path): pytest.approx(score, abs=1e-3)}
        assert (found[task]["train"], found[task]["validation"]) == (TRAIN, VALIDATION)
    assert found["cola"]["constant"] == 0.0
    _, labels = read(probe_data, "rte", "train")
    _, expected = read(probe_data, "rte", "validation")
    most_frequent = int(np.mean(labels) > 0.5)
    assert found["rte"]["constant"] == pytest.approx(np.mean(np.array(expected) == most_frequent))
    assert [task["metric"] for task in found.values()] == ["accuracy", "matthews_correlation", "spearman"]


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_pruned_models_are_probed_and_compared(tiny_options, tiny, probe_data, capsys, method):
    contraprune.prune(**tiny_options | {"num_train_epochs": 1}, method=method, density=0.5, contrast="none")
    model = tiny_options["output_dir"]  # of the run, which holds the model
    others = [str(tiny / "pretrained"), str(tiny / "teacher")]
    capsys.readouterr()
    found = probed(capsys, model, probe_data, "--tasks", "rte,stsb", "--against", *others)
    assert found["models"] == [model, *others]
    for path in found["models"]:  # each alone
        alone = probed(capsys, path, probe_data, "--tasks", "stsb")
        assert alone["tasks"]["stsb"]["scores"] == {path: found["tasks"]["stsb"]["scores"][path]}
        assert found["mean"][path] == pytest.approx(np.mean([task["scores"][path] for task in found["tasks"].values()]))
    assert len({found["tasks"]["stsb"]["scores"][path] for path in found["models"]}) == 3


def test_the_encoder_is_the_models_and_its_head_does_not_matter(tiny_options, probe_data):
    contraprune.prune(**tiny_options | {"num_train_epochs": 1}, method="taylor", density=0.5, contrast="none")
    whole = contraprune.load(tiny_options["output_dir"])
    part = load_encoder(f"{tiny_options['output_dir']}/model").model
    expected = whole.base_model.state_dict()
    assert part.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in part.state_dict().items())
    assert not part.training


@pytest.mark.parametrize("family", ["distilbert", "mpnet", "deberta-v2", "modernbert", "gpt2", "llama"])
def test_other_families_are_probed(tiny, tmp_path, probe_data, capsys, family):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "teacher")
    settings = FAMILIES[family]
    config = AutoConfig.for_model(
        family, **(settings.sizes | settings.config | {"vocab_size": len(tokenizer), "pad_token_id": 0})
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for pooling in ("mean", "cls"):
        found = probed(capsys, tmp_path, probe_data, "--tasks", "stsb", "--pooling", pooling)
        assert np.isfinite(found["tasks"]["stsb"]["scores"][str(tmp_path)])


def test_the_table_shows_scores_and_differences(tiny, probe_data, capsys):
    model, other = str(tiny / "pretrained"), str(tiny / "teacher")
    found = probed(capsys, model, probe_data, "--tasks", "rte,stsb", "--against", other)
    arguments = [flag for flag in flags(probe_data, "--tasks", "rte,stsb", "--against", other) if flag != "--json"]
    assert main(["probe", model, *arguments]) == 0
    shown = capsys.readouterr().out
    for task in found["tasks"].values():
        assert f"{task['scores'][model]:.4f}" in shown
        assert f"{task['scores'][model] - task['scores'][other]:+.4f}" in shown
    assert f"A  {model}" in shown
    assert f"B  {other}" in shown


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tasks", "rte,rte"], "--tasks: expected names of different tasks"),
        ([], "--tasks: expected names of different tasks, joined by commas, found ''"),
        (["--tasks", "sst3"], "--task: expected one of"),
        (["--tasks", "qnli"], "qnli: expected a directory, found nothing"),
        (["--tasks", "rte", "--against", "./nowhere"], "./nowhere: no such model directory"),
        (["--tasks", "rte", "--against", "{model}"], "--against: expected different models"),
        (["--tasks", "rte", "--max_train_samples", "1"], "rte: expected two classes, of each two training rows"),
        (["--tasks", "stsb", "--max_train_samples", "1"], "stsb: expected at least two training rows, found 1"),
        (["--tasks", "rte", "--max_length", "2"], "--max_length: expected at least 4, found 2"),
        (["--tasks", "rte", "--pooling", "max"], "argument --pooling: invalid choice: 'max'"),
        (["--tasks", "rte", "--model", "x"], "--model: no such flag"),
    ],
)
def test_mistakes_are_one_line(tiny, probe_data, capsys, extra, message):
    model = str(tiny / "pretrained")
    assert main(["probe", model, *flags(probe_data), *(flag.format(model=model) for flag in extra)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("contraprune: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_checkpoint_without_an_encoder_is_refused(tiny, tmp_path, probe_data, capsys):
    for file in (tiny / "pretrained").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert main(["probe", str(tmp_path), *flags(probe_data, "--tasks", "rte")]) == 2
    assert "its weights lack 16 parameters of the encoder, first encoder.layer.2." in capsys.readouterr().err
