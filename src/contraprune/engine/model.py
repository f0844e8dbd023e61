"""A transformers model whose encoder runs in the engine.

The object is what ``from_pretrained`` would have given: the stock class with its pooler and task head, so pipelines,
output classes and losses are those of transformers. Only the base model is replaced: its embeddings and layers are
gone, and its forward pass asks the engine for the last hidden states.
"""

import copy
import warnings
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from contraprune.engine.compile import LIBRARY
from contraprune.engine.fallback import TorchEncoder
from contraprune.engine.families import EncoderSpec, describe
from contraprune.engine.native import NativeEncoder, Values, library
from contraprune.engine.tokens import Encoder, pad, strip
from contraprune.errors import UserError

_REFUSED = ("inputs_embeds", "output_attentions", "output_hidden_states", "encoder_hidden_states", "past_key_values")


class _Saved:
    """Methods of the whole model: it has no weights that could be saved or trained."""

    def save_pretrained(self, *args: Any, **options: Any) -> NoReturn:
        raise UserError("save_pretrained: a model in the sparse engine has no dense weights; use contraprune export")


class _Base(_Saved):
    """Methods of the base model."""

    config: Any
    _modules: dict[str, Any]
    encoder_in_engine: Encoder
    spec: EncoderSpec

    @property
    def device(self) -> torch.device:
        """Where outputs are when inputs are there too; the encoder always runs on the CPU."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))  # type: ignore[attr-defined]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Last hidden states, zero where ``attention_mask`` is, and the pooler's output where there is a pooler.

        Args:
            input_ids: (batch, length) token ids.
            attention_mask: (batch, length), 0 for padding, which costs nothing.
            token_type_ids: (batch, length).
            position_ids: (batch, length) or (1, length).

        Raises:
            UserError: an input is out of range, or something is asked for that the engine does not have.
        """
        for name in _REFUSED:
            if options.get(name) is not None and options[name] is not False:
                raise UserError(f"{name}: not available in the sparse engine")
        if input_ids is None:
            raise UserError("input_ids: expected (batch, length) token ids, found none")
        batch = strip(self.spec, input_ids, attention_mask, token_type_ids, position_ids)
        hidden = pad(self.encoder_in_engine(batch.tokens), batch).to(input_ids.device)
        pooler = self._modules.get("pooler")
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=pooler(hidden) if pooler is not None else None,
        )
        return output.to_tuple() if options.get("return_dict") is False else output


def accelerate(model: PreTrainedModel, *, threads: int | None = None, isa: str | None = None) -> PreTrainedModel:
    """The same model with its encoder in the engine; the given one stays as it is.

    Args:
        model: of a family the engine knows, on the CPU, masks folded in.
        threads: of the engine. Default: torch's number.
        isa: ``avx512``, ``avx2``, ``portable`` or ``torch``. Default: CONTRAPRUNE_ISA, else the best.

    Raises:
        UserError: the engine does not run such a model.
    """
    spec = describe(model)
    state = model.state_dict()
    memo = {id(parameter): nn.Parameter(torch.empty(0)) for parameter in model.parameters()}
    without_weights = copy.deepcopy(model, memo)
    values = lambda name: np.array(state[name].detach().float().numpy(), order="C")  # noqa: E731
    return assemble(without_weights, spec, values, threads=threads, isa=isa).eval()


def assemble(
    model: PreTrainedModel, spec: EncoderSpec, values: Values, *, threads: int | None = None, isa: str | None = None
) -> PreTrainedModel:
    """Gives a model without weights (on the meta device) its head's weights and an encoder in the engine, in place."""
    base = model.base_model
    for name, _ in list(base.named_children()):
        if name != "pooler":
            delattr(base, name)
    for name in [name for name, _ in model.named_parameters()]:
        module, _, last = name.rpartition(".")
        weight = nn.Parameter(torch.from_numpy(values(name)), requires_grad=False)
        model.get_submodule(module).register_parameter(last, weight)
    encoder = _encoder(spec, values, torch.get_num_threads() if threads is None else threads, isa)
    model.__class__ = _class(type(model), _Saved)
    base.__class__ = _class(type(base), _Base)
    base.spec = spec
    base.encoder_in_engine = encoder
    return model


def _encoder(spec: EncoderSpec, values: Values, threads: int, isa: str | None) -> Encoder:
    if threads < 1:
        raise UserError(f"threads: expected at least 1, found {threads}")
    if isa == "torch":
        return TorchEncoder(spec, values)
    loaded = library()
    if loaded is None:
        warnings.warn(
            f"{LIBRARY.name} is missing or cannot be loaded, so the sparse engine runs in torch, several times slower; "
            "with a C++ compiler, python -m contraprune.engine.compile makes it",
            RuntimeWarning,
            stacklevel=2,
        )
        return TorchEncoder(spec, values)
    return NativeEncoder(spec, values, threads=threads, isa=isa, loaded=loaded)


def _class(stock: Any, methods: Any) -> Any:
    """The stock class with these methods, under its own name: pipelines look models up by it."""
    if methods in stock.__mro__:
        return stock
    own = type(stock.__name__, (methods, stock), {"__module__": __name__})
    own.__qualname__ = stock.__name__
    return own
