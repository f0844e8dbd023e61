"""Which token texts are padded with: where tokenizer and configuration name one each, one of them, or none."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, PreTrainedTokenizerFast

from contraprune import UserError
from contraprune.padding import lacks_padding, require_padding, share_padding


def tokenizer(**special):
    """Four words, of which the special ones are named."""
    backend = Tokenizer(WordLevel({"a": 0, "<unk>": 1, "<eos>": 2, "<pad>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def config(pad):
    return AutoConfig.for_model("llama", pad_token_id=pad)


@pytest.mark.parametrize(
    ("special", "named", "shared"),
    [
        ({"eos_token": "<eos>"}, None, 2),
        ({"eos_token": "<eos>", "pad_token": "<pad>"}, None, 3),
        ({"eos_token": "<eos>", "pad_token": "<pad>"}, 3, 3),
        ({"eos_token": "<eos>"}, 1, 1),  # as some name <unk>
        ({"eos_token": "<eos>", "pad_token": "<pad>"}, 2, 2),  # the model was told otherwise than the tokenizer
        ({}, 1, 1),
    ],
)
def test_tokenizer_and_model_pad_with_the_same_token(special, named, shared):
    own, first, second = tokenizer(**special), config(named), config(None)
    assert share_padding(own, first, second)
    assert (own.pad_token_id, first.pad_token_id, second.pad_token_id) == (shared, shared, shared)
    assert len(own) == 4
    assert own("a", padding="max_length", max_length=3)["input_ids"] == [0, shared, shared]


def test_a_word_is_not_taken_for_padding(caplog):
    """A padding id of 0 that was never meant: the classifier would skip every such word at the end of a text."""
    own, model = tokenizer(eos_token="<eos>"), config(0)
    assert share_padding(own, model)
    assert (own.pad_token, model.pad_token_id) == ("<eos>", 2)
    assert "pad_token_id 0 is 'a' to the tokenizer, not for padding: padding with '<eos>'" in caplog.text


def test_the_configuration_of_a_text_model_is_told_too():
    nested = AutoConfig.for_model("gemma3")
    nested.text_config.pad_token_id = None
    assert lacks_padding(nested)
    share_padding(tokenizer(eos_token="<eos>"), nested)
    assert nested.get_text_config().pad_token_id == 2
    assert not lacks_padding(nested)


def test_without_any_token_there_is_one_line():
    own, model = tokenizer(), config(None)
    assert not share_padding(own, model)
    assert model.pad_token_id is None
    with pytest.raises(UserError, match="here: expected a tokenizer with a pad or an end-of-sequence token, found nei"):
        require_padding(own, model, name="here")
