"""T5 1.0 and 1.1 (Flan-T5) in flax.linen, with T5X's parameter names and logical axes.

Raffel et al. 2020 (T5 1.0: ReLU, tied head); Shazeer 2020 (T5 1.1: gated GELU, head of its own).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes, scan_with_axes, with_sharding_constraint

from cot_flax.model.attention import (
    Attention,
    Dense,
    RelativePositionBias,
    mask_bias,
    same_segment,
)

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5; the defaults are T5 1.1 small (77M parameters).

    Attributes:
        vocab_size: rows of the embedding (32,128 for the 32,100 pieces of T5's vocabulary).
        mlp_activations: `("relu",)` for T5 1.0; a gated pair such as `("gelu", "linear")` for 1.1.
        logits_via_embedding: the head is the embedding, scaled by 1/sqrt(D) (T5 1.0).
        dropout_rate: 0.0 for parity with paper [1], 0.1 for [3] and [4].
        dtype: of activations; parameters, softmax, norms and logits are float32.
        scan_layers: one compiled layer for the whole stack; its parameters gain a leading axis.
        remat: "none", "full" (recompute all in the backward pass) or "minimal" (keep products).
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    dropout_rate: float = 0.0
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"


class LayerNorm(nn.Module):
    """Root-mean-square norm without mean or offset, computed in float32."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale = param_with_axes(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=("embed",)
        )
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return x.astype(self.dtype) * scale.astype(self.dtype)


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
    return Attention(cfg.num_heads, cfg.head_dim, cfg.emb_dim, cfg.dropout_rate, cfg.dtype)


class EncoderLayer(nn.Module):
    config: T5Config

    def setup(self):
        cfg = self.config
        self.pre_attention_layer_norm = LayerNorm(cfg.dtype)
        self.attention = _attention(cfg)
        self.pre_mlp_layer_norm = LayerNorm(cfg.dtype)
        self.mlp = Mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x_BSD, bias_BHSS, deterministic):
        y = self.pre_attention_layer_norm(x_BSD)
        y = self.attention(y, *self.attention.keys_values(y), bias_BHSS, deterministic)
        x_BSD = _residual(x_BSD, self.dropout(y, deterministic=deterministic))
        y = self.mlp(self.pre_mlp_layer_norm(x_BSD), deterministic)
        return _residual(x_BSD, self.dropout(y, deterministic=deterministic)), None


class DecoderLayer(nn.Module):
    config: T5Config

    def setup(self):
        cfg = self.config
        self.pre_self_attention_layer_norm = LayerNorm(cfg.dtype)
        self.self_attention = _attention(cfg)
        self.pre_cross_attention_layer_norm = LayerNorm(cfg.dtype)
        self.encoder_decoder_attention = _attention(cfg)
        self.pre_mlp_layer_norm = LayerNorm(cfg.dtype)
        self.mlp = Mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x_BTD, encoded_BSD, self_bias, cross_bias, deterministic):
        y = self.pre_self_attention_layer_norm(x_BTD)
        y = self.self_attention(y, *self.self_attention.keys_values(y), self_bias, deterministic)
        x_BTD = _residual(x_BTD, self.dropout(y, deterministic=deterministic))
        cross = self.encoder_decoder_attention.keys_values(encoded_BSD)
        return self._cross_and_mlp(x_BTD, cross, cross_bias, deterministic), None

    def cross_keys_values(self, encoded_BSD):
        """Returns the keys and values of the encoder's output, each [B, S, H, C]."""
        return self.encoder_decoder_attention.keys_values(encoded_BSD)

    def step(self, x_BND, position, cache, self_bias, cross_bias):
        """Decodes one token for each of N samples a prompt; returns the output and the new cache.

        The N samples are N queries to the one copy of the prompt's keys and values.
        """
        B, N, D = x_BND.shape
        y = self.pre_self_attention_layer_norm(x_BND.reshape(B * N, 1, D))
        key, value = self.self_attention.keys_values(y)
        keys = jax.lax.dynamic_update_slice_in_dim(cache["key"], key, position, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(cache["value"], value, position, axis=1)
        y = self.self_attention(y, keys, values, self_bias)
        x_BND = x_BND + y.reshape(B, N, D)
        cross = (cache["cross_key"], cache["cross_value"])
        x_BND = self._cross_and_mlp(x_BND, cross, cross_bias, deterministic=True)
        return x_BND, cache | {"key": keys, "value": values}

    def _cross_and_mlp(self, x_BTD, cross, cross_bias, deterministic):
        y = self.pre_cross_attention_layer_norm(x_BTD)
        y = self.encoder_decoder_attention(y, *cross, cross_bias, deterministic)
        x_BTD = _residual(x_BTD, self.dropout(y, deterministic=deterministic))
        y = self.mlp(self.pre_mlp_layer_norm(x_BTD), deterministic)
        return _residual(x_BTD, self.dropout(y, deterministic=deterministic))


class Stack(nn.Module):
    """What encoder and decoder share: position bias, layers (unrolled or scanned), final norm."""

    config: T5Config

    def _build(self, layer_class, length, bidirectional, norm_name):
        cfg = self.config
        inputs = 1 if bidirectional else 3
        self.relpos_bias = RelativePositionBias(cfg.num_heads, bidirectional, jnp.float32)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        if cfg.remat != "none":
            layer_class = nn.remat(
                layer_class,
                policy=REMAT_POLICIES[cfg.remat],
                prevent_cse=not cfg.scan_layers,
                static_argnums=(inputs + 2,),  # deterministic; self is 0, x is 1
            )
        if cfg.scan_layers:
            layer_class = scan_with_axes(
                layer_class,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast,) * (inputs + 1),
                length=length,
                axis_name="layers",
            )
            self.layers = layer_class(cfg)
        else:
            self.layers = [layer_class(cfg) for _ in range(length)]
        setattr(self, norm_name, LayerNorm(cfg.dtype))

    def _run(self, x, *args):
        layers = [self.layers] if self.config.scan_layers else self.layers
        for layer in layers:
            x, _ = layer(x, *args)
        return x


class Encoder(Stack):
    def setup(self):
        self._build(EncoderLayer, self.config.num_encoder_layers, True, "encoder_norm")

    def __call__(self, x_BSD, mask_B1SS, deterministic):
        bias = self.relpos_bias(x_BSD.shape[1], x_BSD.shape[1]) + mask_B1SS
        x_BSD = self.dropout(x_BSD, deterministic=deterministic).astype(self.config.dtype)
        x_BSD = self.encoder_norm(self._run(x_BSD, bias, deterministic))
        return self.dropout(x_BSD, deterministic=deterministic)


class Decoder(Stack):
    def setup(self):
        self._build(DecoderLayer, self.config.num_decoder_layers, False, "decoder_norm")
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense((self.config.vocab_size,), ("embed", "vocab"), jnp.float32)

    def __call__(self, x_BTD, encoded_BSD, self_mask, cross_mask, deterministic):
        bias = self.relpos_bias(x_BTD.shape[1], x_BTD.shape[1]) + self_mask
        x_BTD = self.dropout(x_BTD, deterministic=deterministic).astype(self.config.dtype)
        x_BTD = self._run(x_BTD, encoded_BSD, bias, cross_mask, deterministic)
        return self.dropout(self.decoder_norm(x_BTD), deterministic=deterministic)

    def init_cache(self, encoded_BSD, samples: int, length: int):
        """Returns a list with one cache a layer, for `samples` continuations of each prompt."""
        rows = encoded_BSD.shape[0] * samples
        shape = (rows, length, self.config.num_heads, self.config.head_dim)
        empty = jnp.zeros(shape, self.config.dtype)
        cache = []
        for layer in self.layers:
            key, value = layer.cross_keys_values(encoded_BSD)
            cache.append({"key": empty, "value": empty, "cross_key": key, "cross_value": value})
        return cache

    def step(self, x_BND, position, cache, cross_mask):
        length = cache[0]["key"].shape[1]
        future = jnp.arange(length) > position
        bias = mask_bias(~future[None, None, :]) + self.relpos_bias.row(position, length)
        new_cache = []
        x_BND = x_BND.astype(self.config.dtype)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x_BND, layer_cache = layer.step(x_BND, position, layer_cache, bias, cross_mask)
            new_cache.append(layer_cache)
        return self.decoder_norm(x_BND), new_cache


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


class T5(nn.Module):
    """The encoder-decoder. Padding is token 0 everywhere; segment ids are for packed rows."""

    config: T5Config

    def setup(self):
        self.token_embedder = Embedding(self.config.vocab_size, self.config.emb_dim)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        *,
        enable_dropout: bool = False,
    ) -> jax.Array:
        """Returns logits_BTV in float32; all arguments are int32, [B, S] or [B, T]."""
        encoder_segments = _segments(encoder_input_tokens, encoder_segment_ids)
        decoder_segments = _segments(decoder_target_tokens, decoder_segment_ids)
        encoded_BSD = self.encode(encoder_input_tokens, encoder_segments, enable_dropout)
        length = decoder_input_tokens.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        self_mask = mask_bias(causal & same_segment(decoder_segments, decoder_segments))
        cross_mask = mask_bias(same_segment(decoder_segments, encoder_segments))
        x_BTD = self.token_embedder(decoder_input_tokens)
        x_BTD = self.decoder(x_BTD, encoded_BSD, self_mask, cross_mask, not enable_dropout)
        return self.logits(x_BTD)

    def encode(self, encoder_input_tokens, encoder_segment_ids=None, enable_dropout=False):
        """Returns the encoder's output, [B, S, D]."""
        segments = _segments(encoder_input_tokens, encoder_segment_ids)
        mask = mask_bias(same_segment(segments, segments))
        return self.encoder(self.token_embedder(encoder_input_tokens), mask, not enable_dropout)

    def init_cache(self, encoder_input_tokens, *, samples: int, length: int):
        """Encodes the prompts; returns a cache for `samples` continuations of `length` tokens."""
        return self.decoder.init_cache(self.encode(encoder_input_tokens), samples, length)

    def step(self, tokens_BN, position, cache, encoder_input_tokens):
        """Feeds one token a sample; returns float32 logits [B, N, V] and the new cache."""
        real_B1S = (encoder_input_tokens > 0)[:, None, :]
        x_BND = self.token_embedder(tokens_BN)
        x_BND, cache = self.decoder.step(x_BND, position, cache, mask_bias(real_B1S))
        return self.logits(x_BND), cache

    def logits(self, x_BTD) -> jax.Array:
        if self.config.logits_via_embedding:
            head_VD = self.token_embedder.embedding
            return x_BTD.astype(jnp.float32) @ head_VD.T / jnp.sqrt(self.config.emb_dim)
        return self.decoder.logits_dense(x_BTD)


def _residual(x_BTD, y_BTD):
    return with_sharding_constraint(x_BTD + y_BTD, ("batch", "length", "embed"))


def _segments(tokens, segment_ids):
    return (tokens > 0).astype(jnp.int32) if segment_ids is None else segment_ids
