"""A second family of students in one file: a decoder-only transformer of one layer, in plain JAX.

It shows what a family has to bring, and that nothing else has to know. Letters as in
cot_flax/students/student.py.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata

from cot_flax.students.layouts import DecoderOnly
from cot_flax.students.products import Product
from cot_flax.students.student import CacheShape, Prompts, Ring, Stack, add_family
from cot_flax.text.tokenizers import T5_SPECIAL_IDS, SpecialIds

MASKED = -1e9
AXES = {
    "embedding": ("vocab", "embed"),
    "positions": ("length", "embed"),
    "norms": ("layers", "embed"),
    "query": ("embed", "joined_kv"),
    "key": ("embed", "joined_kv"),
    "value": ("embed", "joined_kv"),
    "out": ("joined_kv", "embed"),
    "wi": ("embed", "mlp"),
    "wo": ("mlp", "embed"),
}


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 256
    emb_dim: int = 32
    num_heads: int = 2
    max_length: int = 256
    dtype: str = "float32"
    residual_dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "xla"


@add_family
@dataclasses.dataclass(frozen=True)
class ToyStudent:
    config: ToyConfig
    special_ids: SpecialIds = T5_SPECIAL_IDS

    family: ClassVar[str] = "toy"
    config_class: ClassVar[type] = ToyConfig
    model_types: ClassVar[tuple[str, ...]] = ("toy",)
    flexible: ClassVar[tuple[str, ...]] = ()
    forward_order: ClassVar[tuple[str, ...]] = tuple(AXES)
    layout = DecoderOnly()
    places = ("embedding", "layer", "logits")
    uses_dropout = False
    lora = None

    def parameter_shapes(self):
        cfg = self.config
        sizes = {"vocab": cfg.vocab_size, "embed": cfg.emb_dim, "length": cfg.max_length}
        sizes |= {"layers": 2, "joined_kv": cfg.emb_dim, "mlp": 4 * cfg.emb_dim}
        return {name: tuple(sizes[axis] for axis in axes) for name, axes in AXES.items()}

    def init(self, key):
        keys = dict(zip(AXES, jax.random.split(key, len(AXES)), strict=True))
        scale = self.config.emb_dim**-0.5
        params = {
            name: scale * jax.random.normal(keys[name], shape)
            for name, shape in self.parameter_shapes().items()
        }
        params["norms"] = jnp.ones_like(params["norms"])
        axes = {f"{name}_axes": AxisMetadata(names=names) for name, names in AXES.items()}
        return {"params": params, "params_axes": axes}

    def hidden(self, params, batch, *, dropout_key=None):
        return self.hidden_watched(params, batch)[0]

    def hidden_watched(self, params, batch, *, dropout_key=None):
        tokens_BT = batch["decoder_input_tokens"]
        places_T = jnp.arange(tokens_BT.shape[1])
        positions = batch.get("decoder_positions", jnp.broadcast_to(places_T, tokens_BT.shape))
        segments_BT = batch.get("decoder_segment_ids", jnp.ones_like(tokens_BT))
        seen_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
        seen_BTT &= (places_T[:, None] >= places_T[None, :])[None]
        x_BTD = self._embed(params, tokens_BT, positions)
        keys, values = self._keys_values(params, x_BTD)
        q_BTHC = self._heads(_norm(x_BTD, params, 0) @ params["query"])
        logits = jnp.einsum("bthc,bshc->bhts", q_BTHC, keys)
        weights = jax.nn.softmax(jnp.where(seen_BTT[:, None], logits, MASKED))
        mixed = jnp.einsum("bhts,bshc->bthc", weights, values)
        y_BTD = self._finish(params, x_BTD, mixed)
        return y_BTD, ~jnp.array([jnp.isfinite(z).all() for z in (x_BTD, y_BTD)])

    def head(self, params):
        return params["embedding"].T

    def for_decoding(self, params):
        return self, params

    @property
    def cache_shape(self):
        cfg = self.config
        return CacheShape(1, cfg.num_heads, cfg.emb_dim // cfg.num_heads, "float32")

    def prefill(self, params, tokens_BS):
        """All tokens but the last real one are read; that one is fed first."""
        places_S = jnp.arange(tokens_BS.shape[1])
        real_BS = tokens_BS != self.special_ids.pad
        length_B = jnp.max(jnp.where(real_BS, places_S[None], 0), axis=1)
        positions_BS = jnp.broadcast_to(places_S, tokens_BS.shape)
        keys, values = self._keys_values(params, self._embed(params, tokens_BS, positions_BS))
        return Prompts(
            keys=[keys.transpose(0, 2, 3, 1)],
            values=[values.transpose(0, 2, 1, 3)],
            bias=jnp.where(places_S[None] < length_B[:, None], 0.0, MASKED)[:, None, None],
            start_B=jnp.take_along_axis(tokens_BS, length_B[:, None], axis=1)[:, 0],
            length_B=length_B,
        )

    def step(self, params, tokens_BN, ages_B, head, prompts, ring):
        places_B = prompts.length_B + ages_B
        x_BND = self._embed(params, tokens_BN, jnp.broadcast_to(places_B[:, None], tokens_BN.shape))
        new = [
            jax.lax.dynamic_update_index_in_dim(old, made, head, axis=3)
            for old, made in zip(
                (ring.keys[0], ring.values[0]), self._keys_values(params, x_BND), strict=True
            )
        ]
        L = new[0].shape[3]
        seen_BL = ((head - jnp.arange(L)) % L)[None] <= ages_B[:, None]
        q_BNHC = self._heads(_norm(x_BND, params, 0) @ params["query"])
        before = jnp.einsum("bnhc,bhcs->bnhs", q_BNHC, prompts.keys[0]) + prompts.bias
        own = jnp.einsum("bnhc,bnhlc->bnhl", q_BNHC, new[0])
        own = jnp.where(seen_BL[:, None, None], own, MASKED)
        weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1))
        S = before.shape[-1]
        mixed = jnp.einsum("bnhs,bhsc->bnhc", weights[..., :S], prompts.values[0])
        mixed += jnp.einsum("bnhl,bnhlc->bnhc", weights[..., S:], new[1])
        logits_BNV = self._finish(params, x_BND, mixed) @ self.head(params)
        return logits_BNV, Ring([new[0]], [new[1]])

    @classmethod
    def config_from_json(cls, fields):
        return ToyConfig(**fields)

    @classmethod
    def from_hugging_face(cls, settings, tensors, place):
        config = ToyConfig(**settings["config"])
        ours = {name.removeprefix("toy."): tensor for name, tensor in tensors.items()}
        return cls(config, SpecialIds(*settings["ids"])), ours

    def to_hugging_face(self, tensors):
        settings = {"model_type": "toy", "config": dataclasses.asdict(self.config)}
        named = {f"toy.{name}": tensor for name, tensor in tensors.items()}
        return settings | {"ids": list(self.special_ids)}, named

    @classmethod
    def from_t5x(cls, shapes, place):
        return None

    def products(self, batch, inputs, targets, platform):
        rows, D, V = batch * (inputs + targets), self.config.emb_dim, self.config.vocab_size
        return [
            Product("dense", rows, D, 8 * D, 1, "columns"),
            Product("dense", rows, 4 * D, D, 1, "inner", last=True),
            Product("head", rows, D, V, 1, "columns"),
        ]

    def stacks(self, batch, inputs, targets):
        return [Stack(batch * (inputs + targets), 1)]

    @property
    def vocabulary_weights(self):
        return self.config.vocab_size * self.config.emb_dim

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.config.num_heads, -1)

    def _embed(self, params, tokens, positions):
        return params["embedding"][tokens] + params["positions"][positions]

    def _keys_values(self, params, x):
        y = _norm(x, params, 0)
        return self._heads(y @ params["key"]), self._heads(y @ params["value"])

    def _finish(self, params, x, mixed):
        x = x + mixed.reshape(x.shape) @ params["out"]
        return x + jax.nn.relu(_norm(x, params, 1) @ params["wi"]) @ params["wo"]


def _norm(x, params, which):
    scale = params["norms"][which][None, None]
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale
