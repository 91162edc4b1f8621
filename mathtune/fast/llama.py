"""The forward pass of a model with the shape of a Llama, over a pack, to the loss of its labels."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mathtune.fast.attention import Heads, Rotary, attend, attend_labels
from mathtune.fast.blocks import AddNorm, Linear, Mlp, NormLinear
from mathtune.fast.loss import LabelLoss
from mathtune.fast.weights import Factors, JoinedWeight, Workspace
from mathtune.packing import Pack
from mathtune.recipe import Recompute

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def head_size(config) -> int:
    """Columns of one head of a model with this transformers configuration."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def why_not(config, targets: tuple[str, ...]) -> str | None:
    """Why a model with this transformers configuration, and adapters on these modules, cannot take the fast step; None if it
    can."""
    if odd := sorted(set(targets) - set(PROJECTIONS)):
        return f"an adapter on {odd[0]} is trained"
    if config.model_type not in ("llama", "mistral"):
        return f"a {config.model_type} has other layers than a Llama"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "its projections have biases"
    if getattr(config, "sliding_window", None):
        return "its attention has a window"
    if (config.rope_parameters or {}).get("rope_type") in ("dynamic", "longrope"):
        return "its rotary embedding depends on what else is in the pack"
    if (config.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of each head only"
    return None


@dataclass(frozen=True)
class Layer:
    """One decoder layer: norms and joined weights. ``attention_in`` is query, key and value; in the last layer, where only
    label tokens ask, ``query`` stands alone and ``attention_in`` is key and value."""

    attention_norm: nn.Module
    attention_in: JoinedWeight
    query: JoinedWeight | None
    attention_out: JoinedWeight
    mlp_norm: nn.Module
    gate_up: JoinedWeight
    down: JoinedWeight

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype, workspace: Workspace | None, last: bool) -> "Layer":
        def joined(*modules: nn.Module) -> JoinedWeight:
            return JoinedWeight(list(modules), dtype, workspace)

        attention, mlp = module.self_attn, module.mlp
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        return cls(module.input_layernorm, joined(key, value) if last else joined(query, key, value),
                   joined(query) if last else None, joined(attention.o_proj), module.post_attention_layernorm,
                   joined(mlp.gate_proj, mlp.up_proj), joined(mlp.down_proj))

    @property
    def weights(self) -> list[JoinedWeight]:
        found = [self.attention_in, self.query, self.attention_out, self.gate_up, self.down]
        return [one for one in found if one is not None]


class FastLlama:
    """Computes the loss of packs, or what comes before it, with the weights and adapters of a model that stays as it is.

    Args:
        model: the causal language model, with an adapter attached or without one.
        dtype: of the products.
        recompute: what the backward pass computes again: "none" (but norms and what lies between products), "selective"
            (gate and up, too), "full" (everything in a layer).
        resident: keep the weights dequantised, instead of making them in every pass.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, recompute: Recompute, resident: bool):
        base, config = model.get_base_model() if isinstance(model, PeftModel) else model, model.config
        self.dtype, self.recompute = dtype, recompute
        self.embeddings, self.rotary, self.norm = base.model.embed_tokens, base.model.rotary_emb, base.model.norm
        self.head = base.lm_head.weight.to(dtype)
        workspace = None if resident else Workspace()
        modules = base.model.layers
        self.layers = [Layer.of(module, dtype, workspace, last=module is modules[-1]) for module in modules]
        self.weights = [weight for layer in self.layers for weight in layer.weights]
        self.factors = Factors(self.weights)
        self.heads = Heads(config.num_attention_heads, config.num_key_value_heads, head_size(config))

    def loss(self, pack: Pack, refreshed: bool = False, training: bool = True) -> Tensor:
        """Sum of the labels' cross-entropies, float32; the caller divides by how many there are.

        Args:
            pack: on the model's device.
            refreshed: no optimizer has stepped since the last pack.
            training: whether the adapter's dropout drops.
        """
        for weight in self.weights:
            weight.dropping = training
        if not refreshed:
            self.factors.refresh()
        return LabelLoss.apply(self.hidden(pack), self.head, pack.labels)

    def hidden(self, pack: Pack) -> Tensor:
        """What the head reads where labels are predicted: [labels, hidden], normed."""
        x, delta = self.embeddings(pack.input_ids).to(self.dtype), None
        rotary = self._rotary(x, pack)
        for layer in self.layers[:-1]:
            if self.recompute == "full":
                x = x if delta is None else x + delta
                x, delta = checkpoint(self._layer, layer, x, None, rotary, pack, use_reentrant=False,
                                      preserve_rng_state=any(weight.dropout for weight in layer.weights))
            else:
                x, delta = self._layer(layer, x, delta, rotary, pack)
        x, delta = self._last_layer(self.layers[-1], x, delta, rotary, pack)
        return AddNorm.apply(x, delta, self.norm, self.layers[-1].down.rank)[1]

    def _rotary(self, x: Tensor, pack: Pack) -> Rotary:
        """Both halves of transformers' cosines and sines are alike."""
        cos, sin = self.rotary(x.float(), pack.positions[None])
        half = self.heads.size // 2
        return Rotary(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())

    def _layer(self, layer: Layer, x: Tensor, delta: Tensor | None, rotary: Rotary, pack: Pack) -> tuple[Tensor, Tensor]:
        joined = layer.attention_in
        x, joint = NormLinear.apply(x, delta, layer.attention_norm, joined, layer.down.rank, *joined.adapters)
        out = attend(joint, self.heads, rotary, pack, joined.rank)
        delta = Linear.apply(out, layer.attention_out, *layer.attention_out.adapters)
        return self._mlp(layer, x, delta)

    def _last_layer(self, layer: Layer, x: Tensor, delta: Tensor | None, rotary: Rotary, pack: Pack) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, the rest at the label tokens."""
        x, normed = AddNorm.apply(x, delta, layer.attention_norm, layer.down.rank)
        joint = Linear.apply(normed, layer.attention_in, *layer.attention_in.adapters)
        queries = Linear.apply(normed.index_select(0, pack.label_index), layer.query, *layer.query.adapters)
        out = attend_labels(queries, joint, self.heads, rotary, pack)
        delta = Linear.apply(out, layer.attention_out, *layer.attention_out.adapters)
        return self._mlp(layer, x.index_select(0, pack.label_index), delta)

    def _mlp(self, layer: Layer, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        return Mlp.apply(x, delta, layer.mlp_norm, layer.gate_up, layer.down, self.recompute == "selective",
                         layer.attention_out.rank, *layer.gate_up.adapters, *layer.down.adapters)
