"""One pass of the model over some rows of the cache: positions, mask, logits. Knows no requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from services.engine.backends.transformers.cache import RowCache
from services.engine.generation import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# How far the logits of the two ways may differ in the self-check, as a share of their spread: rounding of the dtype, nothing more.
_TOLERANCE = {torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.25}


class Forward:
    """The model and its cache."""

    def __init__(self, model: Any, max_rows: int, context_tokens: int, max_bytes: int = 0) -> None:
        """`model`: a causal LM of transformers whose layers all attend to the whole context. The rest bounds the cache; see there."""
        self._model = model
        self.device: torch.device = model.device
        num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.cache = RowCache(num_layers, max(2, max_rows), context_tokens, self.device, max_bytes)  # `check` takes two rows

    def __call__(self, first: int, token_ids: list[list[int]], lengths: Sequence[int]) -> Tensor:
        """Appends `token_ids` [rows, new tokens] to the rows from `first` on, which have `lengths` tokens.

        Returns the logits of the last new token, [rows, vocabulary].
        """
        num_new = len(token_ids[0])
        window = self.cache.open(first, lengths, num_new)
        ids = torch.tensor(token_ids, device=self.device)
        positions = torch.tensor(lengths, device=self.device)[:, None] + torch.arange(num_new, device=self.device)
        # Rows that all begin a prompt, or get one token each at the same length, are causal without a mask.
        is_plain = window.places is None and (window.start == 0 or num_new == 1)
        output = self._model(
            input_ids=ids,
            attention_mask=None if is_plain else self._mask(positions, window.width),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def finish(self) -> None:
        """Waits until the device has done what it was told, so that a pass can be timed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _mask(self, positions: Tensor, width: int) -> Tensor:
        """Added to the attention scores, [rows, 1, new tokens, width]: a token sees its row up to itself.

        Made here because the model's own way from a 2D mask costs more Python than a layer.
        """
        hidden = torch.arange(width, device=self.device) > positions[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]

    def check(self) -> None:
        """Warms the model up, and makes sure that it computes the same over our cache and masks as alone. Raises `BackendError`.

        Models differ in what they do with positions, masks and caches; one that cannot be batched in this way must not be served.
        """
        vocabulary = self._model.config.get_text_config(decoder=True).vocab_size
        long = [(7919 * index + 13) % vocabulary for index in range(7)]
        short = long[4:1:-1]
        alone = torch.cat([self._model(input_ids=torch.tensor([ids], device=self.device)).logits[:, -1] for ids in (long, short)]).float()
        self(0, [long[:3], [*short[:2], 0]], [0, 0])
        self(0, [long[3:6]], [3])
        together = self(0, [long[6:], short[2:]], [6, 2]).float()
        self.cache.bytes_per_token = sum(layer.bytes_per_token for layer in self.cache.layers)
        self.cache.drop()
        difference = (together - alone).abs().mean() / alone.std(-1).mean().clamp(min=1e-6)
        if not bool(difference <= _TOLERANCE.get(self._model.dtype, 0.25)):
            raise BackendError(
                f"{type(self._model).__name__} computes differently in a batch than alone (mean difference {float(difference):.2g} "
                "standard deviations of the logits), so it cannot be served by ENGINE=transformers"
            )
