"""What a directory says about its sentence embeddings."""

import json

import pytest

from contraprune.errors import UserError
from contraprune.tasks.sentences import read_sentence_model

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def directory(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def failure(path):
    with pytest.raises(UserError) as caught:
        read_sentence_model(str(path), 8)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_a_real_directory(minilm):
    found = read_sentence_model(minilm, 384)
    assert (found.pooling, found.prompt, found.lower_case) == ("mean", "", False)
    assert sorted(found.files) == [
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
    ]
    assert json.loads(found.files["sentence_bert_config.json"])["max_seq_length"] == 256


def test_without_files_it_is_the_mean_at_unit_length(tmp_path):
    found = read_sentence_model(str(tmp_path), 8)
    assert found.pooling == "mean"
    written = read_sentence_model(directory(tmp_path, found.files), 8)
    assert written == found
    modules = json.loads(found.files["modules.json"])
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["weightedmean"]}, "weightedmean"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": False}, "mean"),
        ({}, "mean"),
    ],
)
def test_poolings_old_and_new(tmp_path, settings, expected):
    path = directory(tmp_path, {"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": settings})
    assert read_sentence_model(path, 8).pooling == expected


def test_prompt_and_case(tmp_path):
    path = directory(
        tmp_path,
        {
            "modules.json": [TRANSFORMER, POOLING],
            "sentence_bert_config.json": {"do_lower_case": True},
            "config_sentence_transformers.json": {"prompts": {"query": "Q: ", "text": "T: "}},
        },
    )
    assert read_sentence_model(path, 8).prepare("One Text") == "one text"
    settings = {"prompts": {"query": "Q: ", "text": "T: "}, "default_prompt_name": "text"}
    directory(tmp_path, {"config_sentence_transformers.json": settings})
    assert read_sentence_model(path, 8).prepare("One Text") == "t: one text"


BOTH = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
PROMPTED = {"prompts": {"a": "A: "}, "default_prompt_name": "a"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": "[{"}, "/modules.json: not JSON ("),
        ({"modules.json": {}}, "/modules.json: expected a list, found {}"),
        ({"modules.json": [{"idx": 0}]}, "/modules.json: expected a type and a path of every module, found [{'idx': 0"),
        ({"modules.json": ["a"]}, "/modules.json: expected a type and a path of every module, found ['a']"),
        (
            {"modules.json": [TRANSFORMER, POOLING, DENSE]},
            "/modules.json: expected Transformer and Pooling, then at most Normalize; other modules cannot be pruned "
            "with it; found Transformer, Pooling, Dense",
        ),
        ({"modules.json": [TRANSFORMER]}, "found Transformer"),
        (
            {"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": BOTH},
            "/1_Pooling/config.json: expected one pooling of cls, mean, max, mean_sqrt_len_tokens, weightedmean, "
            "lasttoken, found ['cls', 'mean']",
        ),
        ({"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": {"pooling_mode": "sum"}}, "found ['sum']"),
        ({"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": "?"}, "/1_Pooling/config.json: not JSON ("),
        (
            {
                "modules.json": [TRANSFORMER, POOLING, NORMALIZE],
                "1_Pooling/config.json": {"include_prompt": False},
                "config_sentence_transformers.json": PROMPTED,
            },
            "/1_Pooling/config.json: include_prompt: expected true, found false with a default prompt",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused_in_one_line(tmp_path, files, message):
    assert message in failure(directory(tmp_path, files))


def test_files_that_are_not_text(tmp_path):
    (tmp_path / "modules.json").write_bytes(b"\xff\xfe[")
    assert "/modules.json: cannot be read (" in failure(tmp_path)
