"""Which trials a study will run: all are checked before the first is started."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from contraprune.cli import parse
from contraprune.errors import UserError
from contraprune.pipeline import PRUNE_SETTINGS
from contraprune.study.grid import KINDS, METHODS, StudyConfig
from contraprune.study.plan import planned
from contraprune.tasks.question_answering import QuestionAnswering
from contraprune.tasks.regression import TextRegression
from contraprune.tasks.spans import AnswerOptions
from tiny_tasks import TWO_CLASSES

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "paper").glob("*.yaml"))
ANSWERS = QuestionAnswering(
    name="squad",
    train=None,
    evaluation={},
    label_names=(),
    main_metric="f1",
    fingerprint="",
    unanswerable=False,
    options=AnswerOptions(),
)
NUMBERS = TextRegression(
    name="films",
    train=None,
    evaluation={},
    label_names=(),
    main_metric="spearman",
    fingerprint="",
    text_columns=("text",),
)


@pytest.fixture(scope="module")
def bert():
    """The sizes of BERT-base, without its weights."""
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig())


@pytest.fixture
def plan(bert, tmp_path):
    """Plans the study of a command line."""

    def plan(kind, *flags, task=TWO_CLASSES):
        usual = ("--model=m", "--teacher=t", "--seeds=1", "--use_cpu", f"--output_dir={tmp_path}", kind)
        config, *settings, _ = parse("study", (StudyConfig, *PRUNE_SETTINGS), [*flags, *usual], positional="KIND")
        return planned(kind, config, *settings, task=task, model=bert, has_classes=task is not ANSWERS)

    return plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_study_of_every_recipe_of_the_paper_has_only_trials_that_run(plan, caplog, path, kind):
    of = path.stem.split("-")[1]
    method, others = {
        "f": ("taylor", set()),
        "m": ("movement", {"soft_movement", "smp", "l0"}),  # not those that start from no scores
        "soft": ("soft_movement", set()),  # final_threshold is of no other
    }[of]
    asked, shared = plan(kind, f"--config={path}", task=ANSWERS if "squad" in path.stem else TWO_CLASSES)
    found = {(trial.method, trial.density) for trial in asked}
    own = None if of == "soft" else float(path.stem.rpartition("-")[2]) / 100
    if kind == "criteria":
        assert found == {(name, own) for name in {method} | others}
        assert [message.split()[5] for message in caplog.messages] == [
            name for name in METHODS if name not in {method} | others
        ]
    elif kind == "ablation":
        assert found == {(method, own)}
        parts = set() if "squad" in path.stem else {"without unsupervised", "without supervised"}
        sources = {f"without {source}" for source in ("PrC", "SnC", "FiC", "contrast")}
        assert {trial.variant for trial in asked} == {"full"} | sources | parts
        assert caplog.messages == []
    else:
        assert found == {(method, density) for density in ((0.5, 0.1) if of == "f" else (0.5, 0.1, 0.03))}
        assert shared["final_penalty"] is None
        assert (shared["stages"], shared["num_stages"]) == (None, 9)


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        (["--pattern=2:4"], {"taylor": "--pattern 2:4: only for pruning single weights, not with --method taylor"}),
        (
            ["--scope=global"],
            {
                "soft_movement": "--scope global: only with --method movement, magnitude, fisher, smp, not with soft_m",
                "l0": "--scope global: only with --method movement, magnitude, fisher, smp, not with l0",
                "taylor": "--scope global: only for pruning single weights",
            },
        ),
        (["--density=0.03"], {"taylor": "--density 0.03: every one of the 12 layers keeps at least one of its heads"}),
        (
            ["--densities=0.1,0.03"],
            {"taylor at 0.03": "--density 0.03: every one of the 12 layers keeps at least one of its heads"},
        ),
        (["--stages=50,90"], dict.fromkeys(METHODS[:-1], "--stages 50,90: only with --method taylor")),
    ],
)
def test_methods_that_nobody_named_are_left_out_where_the_flags_exclude_them(plan, caplog, flags, left_out):
    if "--stages=50,90" in flags:
        flags = ["--method=taylor", *flags]
    asked, _ = plan("criteria", *flags)
    assert {trial.method for trial in asked} == {name for name in METHODS if name not in left_out}
    assert len(caplog.messages) == len(left_out)
    for message, (name, reason) in zip(caplog.messages, left_out.items(), strict=True):
        assert message.startswith(f"left out of this study: {name} ({reason}")


def test_densities_that_nobody_named_are_left_out_where_the_method_excludes_them(plan, caplog):
    asked, _ = plan("sparsity", "--methods=movement,taylor")
    assert [(trial.method, trial.density) for trial in asked] == [
        *(("movement", density) for density in (0.5, 0.1, 0.03)),
        *(("taylor", density) for density in (0.5, 0.1)),
    ]
    assert [message.split(" (")[0] for message in caplog.messages] == ["left out of this study: taylor at 0.03"]
    of_pattern, _ = plan("sparsity", "--pattern=1:4")  # whose own density is 0.25
    assert [trial.density for trial in of_pattern] == [0.1, 0.03]


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("criteria", ["--methods=movement,taylor", "--pattern=2:4"], "--pattern 2:4: only for pruning single weights"),
        ("sparsity", ["--methods=movement,magnitude", "--score_init=zero"], "--score_init zero: only with --method"),
        ("sparsity", ["--method=taylor", "--densities=0.1,0.03"], "--density 0.03: every one of the 12 layers keeps"),
        ("ablation", ["--method=l0", "--scope=global"], "--scope global: only with --method movement, magnitude"),
        ("criteria", ["--block=5x1"], "--block 5x1: bert.encoder.layer.0.attention.self.query of 768 x 768 weights"),
        ("ablation", ["--supervised_bins=3"], "--supervised_bins 3: only for regression, not for tiny (run movement-"),
        (
            "sparsity",
            ["--method=taylor", "--head_density=0.5", "--neuron_density=0.3"],
            "--head_density 0.5 and --neuron_density 0.3: leave nothing to the densities of this study",
        ),
    ],
)
def test_what_was_named_and_cannot_run_is_refused_in_one_line(plan, kind, flags, message):
    with pytest.raises(UserError) as caught:
        plan(kind, *flags)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_ablation_of_numbers_in_bins_runs(plan):
    asked, _ = plan("ablation", "--supervised_bins=3", task=NUMBERS)
    assert len(asked) == 7
    with pytest.raises(UserError, match=r"^--kd_temperature 4.0: without effect on films"):
        plan("ablation", "--kd_temperature=4", task=NUMBERS)


def test_a_penalty_and_stages_of_their_own_give_way_to_densities(plan, caplog):
    soft = ("--method=soft_movement", "--final_penalty=290")
    assert [trial.density for trial in plan("ablation", *soft, "--contrast=finetuned")[0]] == [None] * 4
    assert caplog.messages == []
    asked, shared = plan("ablation", *soft, "--contrast=finetuned", "--densities=0.2")
    assert ({trial.density for trial in asked}, shared["final_penalty"]) == ({0.2}, None)
    plan("sparsity", "--method=taylor", "--stages=50,80,95")
    assert [message.split(":")[0] for message in caplog.messages[:2]] == [
        "--final_penalty 290 is left out",
        "--stages 50,80,95 is left out",
    ]


def test_the_task_is_asked_too(plan):
    with pytest.raises(UserError, match=r"^--label_smoothing_factor 0.1: only for tasks with classes, not for squad"):
        plan("ablation", "--label_smoothing_factor=0.1", task=ANSWERS)
