"""The shape of a T5."""

import dataclasses
from typing import Literal, get_args

from cot_flax.errors import UserError
from cot_flax.students.lora import Lora

Attention = Literal["auto", "xla", "cudnn", "flash"]
ATTENTIONS = get_args(Attention)
_Dtype = Literal["float32", "bfloat16", "float16"]
_Remat = Literal["none", "full", "minimal"]
_CHOICES = {
    "attention": ATTENTIONS,
    "dtype": get_args(_Dtype),
    "residual_dtype": get_args(_Dtype),
    "remat": get_args(_Remat),
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5; the defaults are T5 1.1 small (77M parameters).

    Attributes:
        vocab_size: rows of the embedding (32,128 for the 32,100 pieces of T5's vocabulary).
        mlp_activations: `("relu",)` for T5 1.0; a gated pair such as `("gelu", "linear")` for 1.1.
        bias_per_layer: every layer has its own position bias (umT5), not the stack.
        logits_via_embedding: the head is the embedding, scaled by 1/sqrt(D) (T5 1.0).
        dropout_rate: 0.0 for parity with paper [1], 0.1 for [3] and [4].
        dtype: of activations; parameters, softmax, norms and logits are float32.
        scan_layers: one compiled layer for the whole stack; its parameters gain a leading axis.
        remat: "none", "full" (recompute all in the backward pass) or "minimal" (keep products).
        residual_dtype: of the sum that runs through a stack. It reaches thousands in T5, where
            bfloat16's steps are larger than what a sublayer adds; bfloat16 halves what remat keeps.
        lora: adapters of the attentions; see students/lora.py.
        attention: who computes attention, of ATTENTIONS: the fused kernel of GPUs ("cudnn") or of
            TPUs ("flash") wherever it serves, else XLA; see students/attention_kernels.py.

    Raises:
        UserError: an attention, dtype or remat that there is not.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    bias_per_layer: bool = False
    logits_via_embedding: bool = False
    dropout_rate: float = 0.0
    dtype: _Dtype = "float32"
    scan_layers: bool = False
    remat: _Remat = "none"
    residual_dtype: _Dtype = "float32"
    lora: Lora | None = None
    attention: Attention = "auto"

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"{name} {value!r}", f"one of {known}", f"set {name.upper()}")
