"""What turns a transformers model into a sentence encoder: the files of the sentence-transformers package.

``modules.json`` lists what a text goes through. Here that is the transformer, its pooling, and the scaling to unit
length; a directory without the file is read as mean pooling and unit length, which is what that package does too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from transformers.utils import cached_file

from contraprune.errors import UserError
from contraprune.files import stays_inside
from contraprune.pooling import Pooling

MODULES = "modules.json"
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_UNDERSTOOD = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
# How poolings were written before they had names.
_SWITCHES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True)
class SentenceModel:
    """How a model directory makes one vector of a text.

    Attributes:
        pooling: of the last hidden states.
        prompt: stands before every text.
        lower_case: whether texts are put in lower case first.
        files: path -> text of the files that say all this, for a model saved from this one.
    """

    pooling: Pooling = "mean"
    prompt: str = ""
    lower_case: bool = False
    files: Mapping[str, str] = field(default_factory=dict)

    def prepare(self, text: str) -> str:
        """The text as the tokenizer gets it."""
        text = self.prompt + text
        return text.lower() if self.lower_case else text


def read_sentence_model(model: str, hidden_size: int) -> SentenceModel:
    """What a model directory or hub name says about its sentence embeddings.

    Args:
        hidden_size: of the model, which has to be told where the files are missing.

    Raises:
        UserError: a text goes through more than a transformer, one pooling and scaling to unit length, or a file is
            broken.
    """
    found = _text(model, MODULES)
    if found is None:
        return SentenceModel(files=_usual_files(hidden_size))
    modules = _json(model, MODULES, found, list)
    try:
        steps = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (KeyError, TypeError) as error:
        raise UserError(f"{model}/{MODULES}: expected a type and a path of every module, found {modules!r:.80}") from (
            error
        )
    if [kind for kind, _ in steps] not in _UNDERSTOOD:
        kinds = ", ".join(kind for kind, _ in steps)
        expected = "expected Transformer and Pooling, then at most Normalize"
        raise UserError(f"{model}/{MODULES}: {expected}; other modules cannot be pruned with it; found {kinds}")
    for _, path in steps:  # it is written to below the saved model, as it is read from below this one
        if not stays_inside(path):
            raise UserError(f"{model}/{MODULES}: expected paths inside of the model, found {path!r:.80}")
    files = {MODULES: found}
    settings: dict[str, dict[str, Any]] = {}
    for name in (*_SETTINGS, *(f"{path}/config.json" for kind, path in steps if kind != "Transformer")):
        text = _text(model, name)
        if text is not None:
            files[name] = text
        settings[name] = {} if text is None else _json(model, name, text, dict)
    pooling_file = f"{steps[1][1]}/config.json"
    prompt = _default_prompt(settings[_SETTINGS[1]])
    if prompt and not settings[pooling_file].get("include_prompt", True):
        raise UserError(f"{model}/{pooling_file}: include_prompt: expected true, found false with a default prompt")
    return SentenceModel(
        pooling=_pooling(settings[pooling_file], f"{model}/{pooling_file}"),
        prompt=prompt,
        lower_case=bool(settings[_SETTINGS[0]].get("do_lower_case")),
        files=files,
    )


def _pooling(settings: Mapping[str, Any], source: str) -> Pooling:
    if "pooling_mode" in settings:
        named = settings["pooling_mode"]
        modes = named if isinstance(named, list) else [named]
    else:
        modes = [mode for switch, mode in _SWITCHES.items() if settings.get(switch)] or ["mean"]
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise UserError(f"{source}: expected one pooling of {', '.join(get_args(Pooling))}, found {modes!r:.80}")
    pooling: Pooling = modes[0]
    return pooling


def _default_prompt(settings: Mapping[str, Any]) -> str:
    prompts = settings.get("prompts") or {}
    return str(prompts.get(settings.get("default_prompt_name")) or "")


def _usual_files(hidden_size: int) -> dict[str, str]:
    """Mean pooling and unit length, as every version of sentence-transformers reads it."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": hidden_size}
    switches = {switch: mode == "mean" for switch, mode in _SWITCHES.items()}
    return {
        MODULES: json.dumps(modules, indent=2),
        "1_Pooling/config.json": json.dumps(pooling | switches, indent=2),
    }


def _text(model: str, name: str) -> str | None:
    """A file of a model directory or hub model; None where there is none."""
    path = cached_file(
        model,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{model}/{name}: cannot be read ({' '.join(str(error).split())})") from error


def _json(model: str, name: str, text: str, kind: type) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{model}/{name}: not JSON ({error})") from error
    if not isinstance(content, kind):
        expected = "a list" if kind is list else "a mapping"
        raise UserError(f"{model}/{name}: expected {expected}, found {content!r:.80}")
    return content
