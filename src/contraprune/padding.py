"""The token that fills up the shorter texts of a batch, where a decoder's tokenizer or configuration names none."""

import logging
from itertools import chain

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from contraprune.errors import UserError


def require_padding(tokenizer: PreTrainedTokenizerBase, *configs: PretrainedConfig, name: str) -> None:
    """:func:`share_padding`, for whoever is going to make batches.

    Raises:
        UserError: there is no such token in the tokenizer of ``name``.
    """
    if not share_padding(tokenizer, *configs):
        raise UserError(f"{name}: expected a tokenizer with a pad or an end-of-sequence token, found neither")


def share_padding(tokenizer: PreTrainedTokenizerBase, *configs: PretrainedConfig) -> bool:
    """Makes a tokenizer pad with the token that the models leave out, in place.

    That is the special token that a configuration names, else the tokenizer's own, else its end-of-sequence token: no
    row is added to the embeddings. A configuration without one is told, because classifiers of decoders read the last
    token that is not padding.

    Returns:
        Whether there is such a token.
    """
    parts = list(chain.from_iterable(map(_parts, configs)))
    special = set(tokenizer.all_special_ids)
    own = tokenizer.pad_token_id
    named = [part.pad_token_id for part in parts if getattr(part, "pad_token_id", None) in special]
    chosen = next((token for token in (*named, own, tokenizer.eos_token_id) if token is not None), None)
    if chosen is None:
        return False
    if chosen != own:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(chosen)
    for part in parts:
        found = getattr(part, "pad_token_id", None)
        if found is not None and found not in special and own is None:
            shown = tokenizer.convert_ids_to_tokens(found) if 0 <= found < len(tokenizer) else "no token"
            logging.getLogger(__name__).warning(
                "pad_token_id %d is %r to the tokenizer, not for padding: padding with %r",
                found, shown, tokenizer.pad_token,
            )  # fmt: skip
            found = None
        if found is None:
            part.pad_token_id = chosen
    return True


def lacks_padding(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration may not know padding when it sees it."""
    return any(getattr(part, "pad_token_id", None) is None for part in _parts(config))


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """A configuration and, where it is another, that of its text model."""
    text = config.get_text_config()
    return [config] if text is config else [config, text]
