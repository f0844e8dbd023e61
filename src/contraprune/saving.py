"""Models that load with stock transformers: saved whole or not at all, and read back with every check."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from contraprune.engine import accelerate, is_sparse, load_sparse
from contraprune.errors import UserError
from contraprune.exported import exported_format, load_exported
from contraprune.files import check, model_in, replace_folder, stays_inside, temporary_name, write_text
from contraprune.masking import fold, masked_linears
from contraprune.padding import lacks_padding, share_padding
from contraprune.remote_code import CONFIG_ERRORS, KEY, declare_record, declare_shapes, pruned_class

_EDITED = "if you changed it yourself, delete SHA256SUMS"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    *,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Saves a model for ``from_pretrained``: masks folded in, safetensors only, whole or absent.

    A model that was shrunk loads without code where its configuration can say the sizes of its layers; otherwise
    with ``trust_remote_code=True`` (a modelling file is written beside the weights), or with :func:`load`.

    Changed in place, so that the model and what was saved are the same: masks are folded in, and the configuration
    tells the sizes (:func:`contraprune.remote_code.declare_shapes`).

    Args:
        files: text files to write beside the weights, by their path in the directory.

    Raises:
        UserError: the model differs from its configuration in more than heads and neurons.
    """
    if masked_linears(model):
        fold(model)
    declare_shapes(model)
    temporary = temporary_name(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    for name, text in files.items():
        write_text(temporary / name, text)
    replace_folder(temporary, directory)


def load(
    path: str | os.PathLike[str], *, engine: Literal["auto", "sparse", "torch"] = "auto", threads: int | None = None
) -> PreTrainedModel:
    """Loads a model that contraprune wrote, in eval mode; shrunk ones too, without running code from there.

    What ``contraprune export`` wrote in another format runs there: sparse in the sparse CPU engine, onnx and openvino
    in their runtimes, as a :class:`contraprune.exported.RuntimeModel`.

    Args:
        path: the model directory, or the run directory that holds it as ``model/``.
        engine: ``torch`` gives a dense torch model from the sparse format too; ``sparse`` runs a dense model in the
            engine, and refuses models it does not know, where ``auto`` gives the dense torch model.
        threads: of the sparse engine or the runtime. Default: torch's number.

    Raises:
        UserError: there is no model at ``path``, a package for it is missing, its weights are truncated or do not fit
            its configuration, or the record of its sizes was edited.
    """
    directory = model_directory(path)
    exported = exported_format(directory)
    if exported is not None:
        if engine != "auto":
            raise UserError(f"{directory}: an {exported} graph; expected the model that it was exported from")
        return load_exported(directory, threads=threads)
    config = load_config(str(directory))
    names = config.architectures
    name = names[0] if isinstance(names, list) and names else names
    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise UserError(f"{directory}/config.json: architectures names {name!r:.80}, no model class of transformers")
    if is_sparse(directory):
        check(directory, _EDITED)
        return load_sparse(model_class, config, directory, engine=engine, threads=threads)
    model = load_pretrained(model_class, str(directory)).eval()
    if lacks_padding(model.config) and has_tokenizer(directory):
        share_padding(load_tokenizer(str(directory)), model.config)
    return accelerate(model, threads=threads) if engine == "sparse" else model


def model_directory(path: str | os.PathLike[str]) -> Path:
    """``path`` itself, or its ``model/`` where it is the directory of a run.

    Raises:
        UserError: there is no model.
    """
    directory = Path(model_in(path))
    if not (directory / "config.json").is_file():
        raise UserError(f"{path}: expected a model directory, found no config.json")
    return directory


def load_config(model: str) -> Any:
    """The configuration of a local directory or a hub model, with the usual failures as one line."""
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, *CONFIG_ERRORS) as error:
        raise UserError(_no_model(model, error)) from error


def load_pretrained(model_class: Any, model: str, **options: Any) -> PreTrainedModel:
    """``model_class.from_pretrained`` that refuses a checkpoint which lacks any of the model's weights.

    A shrunk model is had by this, too, and one in the sparse format, which then runs in the engine. Code from the
    directory or the hub is never run.

    Args:
        model_class: a transformers model or Auto class.
        model: a local directory or a hub name.

    Raises:
        UserError: nothing is there, a file is damaged, or weights of the model are missing or of another shape.
    """
    if is_sparse(model):
        check(Path(model), _EDITED)
        return load_sparse(model_class, load_config(model), model)
    loaded, missing = _from_pretrained(model_class, model, **options)
    if missing:
        raise UserError(f"{model}: its weights lack {len(missing)} parameters of the model, first {missing[0]}")
    return loaded


def load_for_finetuning(model_class: Any, model: str, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """Like :func:`load_pretrained`, but the head and the pooler may be new; also returns their names.

    Raises:
        UserError: also where weights of the encoder are missing.
    """
    loaded, missing = _from_pretrained(model_class, model, **options)
    bare = loaded.base_model is loaded  # whose parameters are all the encoder's
    prefix = "" if bare else f"{loaded.base_model_prefix}."
    encoder = [key for key in missing if key.startswith(prefix) and not of_pooler(key)]
    if encoder:
        raise UserError(f"{model}: its weights lack {len(encoder)} parameters of the encoder, first {encoder[0]}")
    return loaded, missing


def of_pooler(parameter: str) -> bool:
    """Whether a parameter's name is that of a pooler's, the layer that a model has for its first token."""
    return "pooler" in parameter.split(".")


def _from_pretrained(model_class: Any, model: str, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    check(Path(model), _EDITED)
    config = load_config(model)
    record = getattr(config, KEY, None)
    if record is not None:
        model_class, stock, record = pruned_class(model_class, config, model)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of missing keys is replaced by our errors
    try:
        loaded, report = model_class.from_pretrained(
            model,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are looked at below
            use_safetensors=True,  # a pickle can hold code
            dtype=torch.float32,
            trust_remote_code=False,
            **options,
        )
    except (OSError, SafetensorError, *CONFIG_ERRORS) as error:
        raise UserError(_only_a_pickle(model, error) or _no_model(model, error)) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(f"{model}: {name}: expected the shape {[*expected]} of config.json, found {[*found]}")
    if record is not None:
        declare_record(loaded, stock, record)
    return loaded, sorted(report["missing_keys"])


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory holds a tokenizer too."""
    return (directory / "tokenizer_config.json").is_file()


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or a hub model, with the usual failures as one line."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # its parser in Rust knows no other class
        raise UserError(_no_model(model, error)) from error
    templates = tokenizer.chat_template
    for name in templates if isinstance(templates, dict) else ():  # which are files of a saved tokenizer
        if not stays_inside(name) or "/" in name:
            raise UserError(f"{model}: expected a plain name of a chat template, found {name!r:.80}")
    return tokenizer


def _only_a_pickle(model: str, error: Exception) -> str | None:
    """What to say of a model that has weights, but none that are read."""
    directory = Path(model)
    if "use_safetensors" not in str(error) and (
        not directory.is_dir() or any(directory.glob("*.safetensors")) or not any(directory.glob("*.bin"))
    ):
        return None
    return (
        f"{model}: expected weights in safetensors, found a pickle, which can hold code and is not read; if you trust "
        "it, load it with transformers and save_pretrained() it to another directory"
    )


def _no_model(model: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if Path(model).exists():
        return f"{model}: not a model that transformers can load ({reason[:200]})"
    if ("/" in model.rstrip("/") and model.count("/") > 1) or model.startswith((".", "~")):
        return f"{model}: no such model directory"
    return (
        f"{model}: no such directory, and it could not be had from the hub either (no network, or no such name); "
        "give the path of a downloaded model"
    )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters of a model: all of them, and those that are not zero."""
    parameters = list(model.parameters())
    with torch.no_grad():
        nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in parameters)
    return {"all": sum(parameter.numel() for parameter in parameters), "nonzero": nonzero}
