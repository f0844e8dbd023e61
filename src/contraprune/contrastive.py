"""The contrastive losses that pull a model being pruned towards a source of knowledge."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from contraprune.products import linear

Normalization = Literal["supcon", "released"]


class SourceTerms(NamedTuple):
    """The two contrastive losses of one source, unweighted scalars."""

    unsupervised: Float[Tensor, ""]
    supervised: Float[Tensor, ""]


def source_terms(
    anchors: Float[Tensor, "batch dim"],
    ids: Int[Tensor, " batch"],
    labels: Int[Tensor, " batch"] | None,
    rows: Float[Tensor, "rows dim"],
    row_ids: Int[Tensor, " rows"],
    row_labels: Int[Tensor, " rows"] | None,
    *,
    temperature: float,
    normalization: Normalization = "supcon",
    unsupervised: bool = True,
    supervised: bool = True,
) -> SourceTerms:
    """Both contrastive losses of one source, without their weights.

    The candidates of an anchor are the detached, normalised anchors of the rest of the batch, and the bank
    ``rows`` of the source, which must have unit norm (and may be stored in half precision). The positives of
    the unsupervised term are the candidates with the anchor's example id, those of the supervised term the
    candidates with its label. ``anchors`` may have any norm; gradients flow to them alone.

    With p the softmax of the similarities divided by ``temperature``, an anchor's loss is the mean of −log p
    over its positives. ``normalization`` is ``"supcon"``, the mean of these losses over the anchors that have
    a positive, or ``"released"``, their sum divided by the number of positive pairs with log p ≠ 0.

    A term that is switched off, has no labels, or has no positive pair at all is zero, with zero gradient.
    Computed in float32 at least, also under autocast.

    Source: CAP (Xu et al. 2022, arXiv 2112.07198, eq. 1–4) and its released code; ``"supcon"`` is L_out of
    Khosla et al. 2020 (arXiv 2004.11362, eq. 2).
    """
    with torch.autocast(anchors.device.type, enabled=False):
        z = F.normalize(anchors.to(torch.promote_types(anchors.dtype, torch.float32)), dim=-1)
        log_p = _log_probabilities(z, rows.detach().to(z.dtype), temperature)
        off = z.sum() * 0
        by_id, by_label = off, off
        if unsupervised:
            by_id = _reduce(log_p, _positives(ids, row_ids, log_p), normalization)
        if supervised and labels is not None and row_labels is not None:
            by_label = _reduce(log_p, _positives(labels, row_labels, log_p), normalization)
    return SourceTerms(by_id, by_label)


def source_loss(
    anchors: Float[Tensor, "batch dim"],
    ids: Int[Tensor, " batch"],
    labels: Int[Tensor, " batch"] | None,
    rows: Float[Tensor, "rows dim"],
    row_ids: Int[Tensor, " rows"],
    row_labels: Int[Tensor, " rows"] | None,
    *,
    temperature: float,
    unsupervised_weight: float,
    supervised_weight: float,
    normalization: Normalization = "supcon",
) -> Float[Tensor, ""]:
    """The weighted sum of the two terms of ``source_terms``; see there for the arguments and the source."""
    terms = source_terms(
        anchors,
        ids,
        labels,
        rows,
        row_ids,
        row_labels,
        temperature=temperature,
        normalization=normalization,
        unsupervised=unsupervised_weight != 0,
        supervised=supervised_weight != 0,
    )
    return unsupervised_weight * terms.unsupervised + supervised_weight * terms.supervised


def _log_probabilities(
    z: Float[Tensor, "batch dim"], rows: Float[Tensor, "rows dim"], temperature: float
) -> Float[Tensor, "batch batch+rows"]:
    """Log-softmax of the similarities over all candidates but the anchor's own copy."""
    # Two products: stacking the candidates would copy the rows, which are many and long.
    scaled = z / temperature
    similarities = torch.cat([linear(scaled, z.detach()), linear(scaled, rows)], dim=1)
    similarities.fill_diagonal_(torch.finfo(similarities.dtype).min)  # not -inf, which times zero is not zero
    return F.log_softmax(similarities, dim=-1)


def _positives(
    mine: Int[Tensor, " batch"], theirs: Int[Tensor, " rows"], like: Float[Tensor, "batch batch+rows"]
) -> Float[Tensor, "batch batch+rows"]:
    """One where a candidate (the batch itself, then the rows) shares the anchor's id or label, else zero."""
    shared = mine.unsqueeze(1) == torch.cat([mine, theirs])
    # Through bytes, which torch converts to floats several times as fast as booleans.
    return shared.view(torch.uint8).to(like.dtype).fill_diagonal_(0)


def _reduce(
    log_p: Float[Tensor, "batch candidates"],
    positives: Float[Tensor, "batch candidates"],
    normalization: Normalization,
) -> Float[Tensor, ""]:
    positive_log_p = log_p * positives
    counts = positives.sum(dim=1)
    anchor_losses = -positive_log_p.sum(dim=1) / counts.clamp_min(1)
    divisor = counts.count_nonzero() if normalization == "supcon" else positive_log_p.count_nonzero()
    return anchor_losses.sum() / divisor.clamp_min(1)
