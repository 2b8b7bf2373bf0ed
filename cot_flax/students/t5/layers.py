"""What a T5 is built of: norm, feed-forward block, embedding, and a layer of each stack.

Letters as in students/student.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes, with_sharding_constraint
from jax.typing import DTypeLike

from cot_flax.students.t5.attention import Attention, Bias, Dense, RelativePositionBias
from cot_flax.students.t5.config import T5Config


class LayerNorm(nn.Module):
    """Root-mean-square norm without mean or offset, computed in float32.

    It also tells whether its input was finite (training/guard.py): the statistic is there anyway.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        scale = param_with_axes(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=("embed",)
        )
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        watch(self, mean_square)
        scale = jnp.expand_dims(scale, tuple(range(x.ndim - 1)))
        return (x * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(self.dtype)


class Mlp(nn.Module):
    """The feed-forward block; several activations make a gated one (their product)."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BTD, deterministic):
        cfg = self.config
        gated = len(cfg.mlp_activations) > 1
        hidden_BTF = 1.0
        for i, name in enumerate(cfg.mlp_activations):
            wi = Dense(
                (cfg.mlp_dim,), ("embed", "mlp"), cfg.dtype, name=f"wi_{i}" if gated else "wi"
            )
            activate = (lambda x: x) if name == "linear" else getattr(nn, name)
            hidden_BTF = hidden_BTF * activate(wi(x_BTD))
        hidden_BTF = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(
            hidden_BTF, deterministic=deterministic
        )
        hidden_BTF = with_sharding_constraint(hidden_BTF, ("batch", "length", "mlp"))
        return Dense((cfg.emb_dim,), ("mlp", "embed"), cfg.dtype, name="wo")(hidden_BTF)


def _attention(cfg: T5Config) -> Attention:
    return Attention(
        num_heads=cfg.num_heads,
        head_dim=cfg.head_dim,
        features=cfg.emb_dim,
        dropout_rate=cfg.dropout_rate,
        dtype=cfg.dtype,
        lora=cfg.lora,
        implementation=cfg.attention,
    )


def _own_bias(cfg: T5Config, *, bidirectional: bool) -> RelativePositionBias | None:
    """A layer's own position bias, where the stack has none."""
    if not cfg.bias_per_layer:
        return None
    return RelativePositionBias(cfg.num_heads, bidirectional, jnp.float32)


def _with_position(bias: Bias, own: RelativePositionBias | None, length: int) -> Bias:
    return bias if own is None else dataclasses.replace(bias, position=own(length, length))


class EncoderLayer(nn.Module):
    config: T5Config

    def setup(self):
        cfg = self.config
        self.relpos_bias = _own_bias(cfg, bidirectional=True)
        self.pre_attention_layer_norm = LayerNorm(cfg.dtype)
        self.attention = _attention(cfg)
        self.pre_mlp_layer_norm = LayerNorm(cfg.dtype)
        self.mlp = Mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x_BSD, bias, deterministic):
        y = self.pre_attention_layer_norm(x_BSD)
        keys_values = self.attention.keys_values(y, deterministic)
        bias = _with_position(bias, self.relpos_bias, x_BSD.shape[1])
        y = self.attention(y, *keys_values, bias, deterministic)
        x_BSD = _residual(x_BSD, self.dropout(y, deterministic=deterministic))
        y = self.mlp(self.pre_mlp_layer_norm(x_BSD), deterministic)
        return _residual(x_BSD, self.dropout(y, deterministic=deterministic)), None


class DecoderLayer(nn.Module):
    config: T5Config

    def setup(self):
        cfg = self.config
        self.relpos_bias = _own_bias(cfg, bidirectional=False)
        self.pre_self_attention_layer_norm = LayerNorm(cfg.dtype)
        self.self_attention = _attention(cfg)
        self.pre_cross_attention_layer_norm = LayerNorm(cfg.dtype)
        self.encoder_decoder_attention = _attention(cfg)
        self.pre_mlp_layer_norm = LayerNorm(cfg.dtype)
        self.mlp = Mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x_BTD, encoded_BSD, self_bias, cross_bias, deterministic):
        y = self.pre_self_attention_layer_norm(x_BTD)
        keys_values = self.self_attention.keys_values(y, deterministic)
        self_bias = _with_position(self_bias, self.relpos_bias, x_BTD.shape[1])
        y = self.self_attention(y, *keys_values, self_bias, deterministic)
        x_BTD = _residual(x_BTD, self.dropout(y, deterministic=deterministic))
        y = self.pre_cross_attention_layer_norm(x_BTD)
        keys_values = self.encoder_decoder_attention.keys_values(encoded_BSD, deterministic)
        y = self.encoder_decoder_attention(y, *keys_values, cross_bias, deterministic)
        x_BTD = _residual(x_BTD, self.dropout(y, deterministic=deterministic))
        y = self.mlp(self.pre_mlp_layer_norm(x_BTD), deterministic)
        return _residual(x_BTD, self.dropout(y, deterministic=deterministic)), None

    def cross_keys_values(self, encoded_BSD):
        """Returns the keys and values of the encoder's output, each [B, S, H, C]."""
        return self.encoder_decoder_attention.keys_values(encoded_BSD)


class Embedding(nn.Module):
    vocab_size: int
    features: int

    def setup(self):
        self.embedding = param_with_axes(
            "embedding",
            nn.initializers.normal(1.0),
            (self.vocab_size, self.features),
            jnp.float32,
            axes=("vocab", "embed"),
            module=self,
        )

    def __call__(self, tokens):
        return jnp.take(self.embedding, tokens, axis=0)


def watch(module, x_BTD):
    """Marks the rows [B] that are not finite; nothing unless "intermediates" are asked for."""
    module.sow("intermediates", "nonfinite", ~jnp.all(jnp.isfinite(x_BTD), axis=(1, 2)))


def _residual(x_BTD, y_BTD):
    x_BTD = x_BTD + y_BTD.astype(x_BTD.dtype)
    return with_sharding_constraint(x_BTD, ("batch", "length", "embed"))
