"""The model as transformers wants it: for `from_pretrained`, `generate` and `Trainer`.

Padding. A recurrence reads whatever it is given, so padding on the left is not read at all: rows
that begin together are run together, each group with a state of its own. Padding on the right
comes after all that counts, and is read for nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .model import Model

KNOWN = "_is_hf_initialized"
"""Transformers' mark on a tensor that has its values."""


class ArchsearchConfig(PreTrainedConfig):
    """Sizes of the architecture, which itself is in model.py; `spec` has all of it.

    It stands in this file as transformers remembers which model goes with which configuration: of
    another architecture in a folder of the same name, this is another class.

    Args:
        vocab_size: tokens.
        hidden_size: width of the residual stream.
        num_hidden_layers: layers.
        kwargs: what every configuration has.
    """

    model_type = "archsearch"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**kwargs)


class States:
    """The states of a batch: of every group of rows that began together, its rows and its state."""

    def __init__(self, groups: list[tuple[Tensor, tuple]]) -> None:
        self.groups = groups

    def reorder(self, chosen: Tensor) -> "States":
        """Those of a batch whose row i goes on from row `chosen[i]` of this one."""
        groups = []
        for rows, state in self.groups:
            new, old = (chosen[:, None] == rows).nonzero(as_tuple=True)
            if len(new):
                groups.append((new, _take(state, old)))
        return States(groups)


def _take(state: tuple, rows: Tensor) -> tuple:
    """Rows of a state; a count of what was read has none and is of all."""

    def taken(leaf: Any) -> Any:
        rowed = isinstance(leaf, Tensor) and leaf.ndim > 0
        return leaf.index_select(0, rows) if rowed else leaf

    return tree_map(taken, state)


@dataclass
class CausalOutput(ModelOutput):
    """Logits (B, T, V), zero where padding stands on the left; the loss; the states to go on."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache_params: States | None = None


class ArchsearchForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits of each next token; the head is the embedding."""

    config_class = ArchsearchConfig
    base_model_prefix = "model"

    def __init__(self, config: ArchsearchConfig) -> None:
        super().__init__(config)
        self.model, self.constants = _born()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Gives a module its own birth back: transformers empties what the weights' file has not.

        Constants always, as no file has them; weights where a file is another model's.
        """
        name = next((name for name, own in self.model.named_modules() if own is module), None)
        if name is None:
            return
        own = [*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)]
        prefix = f"{name}." if name else ""
        lost = {f"{prefix}{key}": t for key, t in own if not getattr(t, KNOWN, False)}
        known = self.constants
        if not lost.keys() <= known.keys():
            fresh, _ = _born()
            known = dict(fresh.named_buffers()) | dict(fresh.named_parameters())
        with torch.no_grad():
            for key, tensor in lost.items():
                tensor.copy_(known[key])

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache_params: States | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalOutput | tuple:
        """Reads tokens (B, T), from the states of those before if there are any.

        Args:
            input_ids: tokens, of a batch that goes on the new ones alone.
            attention_mask: (B, T), 0 at padding; not read where states are given.
            labels: the same tokens, shifted here; -100 is not scored.
            cache_params: states, as they were returned.
            use_cache: whether to return them; if None, where nothing is trained or scored, and no
                padding stands on the right.
            return_dict: a tuple if False.
            kwargs: of the loss, as Trainer has them.

        Raises:
            ValueError: padding between tokens, or on the right and states are wanted.
        """
        if use_cache is None:
            scored = self.training or labels is not None
            use_cache = not scored and not _ends_early(attention_mask, cache_params)
        if cache_params is not None:
            groups = cache_params.groups
        else:
            groups = [(rows, None) for rows in _beginnings(input_ids, attention_mask, use_cache)]
        logits, after = self._run(input_ids, attention_mask, groups, cache_params is None)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        states = States(after) if use_cache else None
        output = CausalOutput(loss=loss, logits=logits, cache_params=states)
        return output if return_dict is not False else output.to_tuple()

    def _run(
        self, tokens: Tensor, mask: Tensor | None, groups: list, begins: bool
    ) -> tuple[Tensor, list]:
        """Every group from where it begins, its rows put back in their places."""
        if len(groups) == 1 and (mask is None or not begins):
            logits, state = self.model(tokens, groups[0][1])
            return logits, [(groups[0][0], state)]
        whole, after = None, []
        for rows, state in groups:
            start = int((mask[rows[0]] == 0).long().cumprod(0).sum()) if begins else 0
            found, state = self.model(tokens[rows, start:], state)
            if whole is None:
                whole = found.new_zeros((*tokens.shape, found.shape[-1]))
            whole[rows, start:] = found
            after.append((rows, state))
        return whole, after

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache_params: States | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The last token alone, once there are states."""
        if cache_params is not None:
            input_ids, attention_mask = input_ids[:, -1:], None
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "cache_params": cache_params,
            "use_cache": use_cache,
        }

    def _reorder_cache(self, cache_params: States, beam_idx: Tensor) -> States:
        return cache_params.reorder(beam_idx)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Transformers' own caches are of keys and values; the states here are any block's."""
        return False


def _born() -> tuple[Model, dict[str, Tensor]]:
    """A new model, marked as initialised, and a copy of the constants that it computed."""
    with torch.device("cpu"):  # transformers builds without memory, but constants have values
        model = Model()
    saved = model.state_dict().keys()
    constants = {name: t.clone() for name, t in model.named_buffers() if name not in saved}
    for tensor in [*model.parameters(), *model.buffers()]:
        setattr(tensor, KNOWN, True)
    return model, constants


def _ends_early(mask: Tensor | None, states: States | None) -> bool:
    """Whether any row has padding on the right."""
    return states is None and mask is not None and bool((mask[:, -1] == 0).any())


def _beginnings(tokens: Tensor, mask: Tensor | None, use_cache: bool) -> list[Tensor]:
    """The rows of a batch by where they begin."""
    rows = torch.arange(len(tokens), device=tokens.device)
    if mask is None:
        return [rows]
    if mask.shape != tokens.shape:
        raise ValueError(f"attention_mask {(*mask.shape,)} of tokens {(*tokens.shape,)}")
    mask = mask != 0
    start = (~mask).long().cumprod(1).sum(1)
    end = mask.shape[1] - (~mask).flip(1).long().cumprod(1).sum(1)
    if (mask.sum(1) != (end - start).clamp(min=0)).any():
        raise ValueError("padding between tokens: it must be on one side of them")
    if (start == mask.shape[1]).any():
        raise ValueError("a row of padding alone: every row needs a token")
    if use_cache and (end != mask.shape[1]).any():
        raise ValueError("padding on the right: pad on the left to generate (padding_side='left')")
    return [rows[start == first] for first in start.unique().tolist()]
