"""T5 1.0 and 1.1 (Flan-T5, mT5, ByT5, umT5) in flax.linen, with T5X's names and logical axes.

Raffel et al. 2020 (T5 1.0: ReLU, tied head); Shazeer 2020 (T5 1.1: gated GELU, head of its own).
Letters as in students/student.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import scan_with_axes

from cot_flax.students.t5.attention import Bias, Dense, RelativePositionBias
from cot_flax.students.t5.config import T5Config
from cot_flax.students.t5.layers import DecoderLayer, Embedding, EncoderLayer, LayerNorm, watch

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nn.Module):
    """What encoder and decoder share: position bias, layers (unrolled or scanned), final norm."""

    config: T5Config

    def _build(self, layer_class, length, bidirectional):
        cfg = self.config
        inputs = 1 if bidirectional else 3
        if not cfg.bias_per_layer:
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
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast,) * (inputs + 1),
                length=length,
                axis_name="layers",
            )
            self.layers = layer_class(cfg)
        else:
            self.layers = [layer_class(cfg) for _ in range(length)]

    def _position(self, length: int) -> jax.Array | None:
        return None if self.config.bias_per_layer else self.relpos_bias(length, length)

    def _run(self, x_BTD, norm, *args):
        """From embeddings to the stack's output; the last of `args` is `deterministic`."""
        x_BTD = self.dropout(x_BTD, deterministic=args[-1]).astype(self.config.residual_dtype)
        for layer in [self.layers] if self.config.scan_layers else self.layers:
            x_BTD, _ = layer(x_BTD, *args)
        x_BTD = norm(x_BTD)
        watch(self, x_BTD)
        return self.dropout(x_BTD, deterministic=args[-1])


class Encoder(Stack):
    def setup(self):
        self._build(EncoderLayer, self.config.num_encoder_layers, True)
        self.encoder_norm = LayerNorm(self.config.dtype)

    def __call__(self, x_BSD, segments_BS, deterministic):
        bias = Bias(self._position(x_BSD.shape[1]), segments_BS, segments_BS)
        return self._run(x_BSD, self.encoder_norm, bias, deterministic)


class Decoder(Stack):
    def setup(self):
        self._build(DecoderLayer, self.config.num_decoder_layers, False)
        self.decoder_norm = LayerNorm(jnp.float32)  # as the head computes
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense((self.config.vocab_size,), ("embed", "vocab"), jnp.float32)

    def __call__(self, x_BTD, encoded_BSD, segments_BT, encoder_segments_BS, deterministic):
        own = Bias(self._position(x_BTD.shape[1]), segments_BT, segments_BT, causal=True)
        cross = Bias(None, segments_BT, encoder_segments_BS)
        return self._run(x_BTD, self.decoder_norm, encoded_BSD, own, cross, deterministic)


class T5(nn.Module):
    """The encoder-decoder. Padding is `pad_id`; segment ids are for packed rows."""

    config: T5Config
    pad_id: int = 0

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
        hidden_BTD = self.hidden(
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            enable_dropout=enable_dropout,
        )
        return self.logits(hidden_BTD)

    def hidden(
        self,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        *,
        enable_dropout: bool = False,
    ) -> jax.Array:
        """The decoder's output, hidden_BTD in float32; times `head` it is the logits."""
        encoder_segments = self._segments(encoder_input_tokens, encoder_segment_ids)
        decoder_segments = self._segments(decoder_target_tokens, decoder_segment_ids)
        encoded_BSD = self.encode(encoder_input_tokens, encoder_segments, enable_dropout)
        segments = decoder_segments, encoder_segments
        x_BTD = self.token_embedder(decoder_input_tokens)
        return self.decoder(x_BTD, encoded_BSD, *segments, not enable_dropout)

    def encode(self, encoder_input_tokens, encoder_segment_ids=None, enable_dropout=False):
        """Returns the encoder's output, [B, S, D]."""
        segments = self._segments(encoder_input_tokens, encoder_segment_ids)
        return self.encoder(self.token_embedder(encoder_input_tokens), segments, not enable_dropout)

    def logits(self, x_BTD) -> jax.Array:
        if self.config.logits_via_embedding:
            head_VD = self.token_embedder.embedding
            return x_BTD.astype(jnp.float32) @ head_VD.T / jnp.sqrt(self.config.emb_dim)
        return self.decoder.logits_dense(x_BTD)

    def _segments(self, tokens, segment_ids):
        return (tokens != self.pad_id).astype(jnp.int32) if segment_ids is None else segment_ids


def head(config: T5Config, params: dict) -> jax.Array:
    """The LM head, head_DV in float32; the scaled embedding where they are tied."""
    if config.logits_via_embedding:
        return params["token_embedder"]["embedding"].T / jnp.sqrt(config.emb_dim)
    return params["decoder"]["logits_dense"]["kernel"]
