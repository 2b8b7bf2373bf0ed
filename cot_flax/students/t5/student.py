"""T5 as a student: the family's side of the protocol in students/student.py."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cot_flax.students import layouts, lora
from cot_flax.students.parameters import Shapes, Tensor, flatten, unrolled_shapes, unstack_layers
from cot_flax.students.products import Product
from cot_flax.students.student import CacheShape, Params, Prompts, Ring, Stack, add_family
from cot_flax.students.t5 import caching, huggingface, products, t5x, watching
from cot_flax.students.t5.config import T5Config
from cot_flax.students.t5.model import T5, head
from cot_flax.text.tokenizers import T5_SPECIAL_IDS, SpecialIds


@add_family
@dataclasses.dataclass(frozen=True)
class T5Student:
    """A T5 1.0 or 1.1; see `Student` for what each member is."""

    config: T5Config
    special_ids: SpecialIds = T5_SPECIAL_IDS

    family: ClassVar[str] = "t5"
    config_class: ClassVar[type] = T5Config
    model_types: ClassVar[tuple[str, ...]] = huggingface.MODEL_TYPES
    flexible: ClassVar[tuple[str, ...]] = (
        "attention",
        "dropout_rate",
        "dtype",
        "remat",
        "residual_dtype",
    )
    forward_order: ClassVar[tuple[str, ...]] = watching.FORWARD

    @property
    def module(self) -> T5:
        return T5(self.config, self.special_ids.pad)

    @property
    def layout(self) -> layouts.Layout:
        return layouts.EncoderDecoder()

    @property
    def places(self) -> list[str]:
        return watching.places(self.config)

    @property
    def uses_dropout(self) -> bool:
        adapters = self.config.lora
        return self.config.dropout_rate > 0 or (adapters is not None and adapters.dropout > 0)

    @property
    def lora(self) -> lora.Lora | None:
        return self.config.lora

    def init(self, key: jax.Array) -> Mapping:
        token = jnp.zeros((1, 1), jnp.int32)
        return self.module.init(key, token, token, token)

    def parameter_shapes(self) -> Shapes:
        return _parameter_shapes(self.config)

    def hidden(self, params: Params, batch: Mapping, *, dropout_key=None) -> jax.Array:
        return self._hidden(params, batch, dropout_key, mutable=[])[0]

    def hidden_watched(
        self, params: Params, batch: Mapping, *, dropout_key=None
    ) -> tuple[jax.Array, jax.Array]:
        hidden_BTD, found = self._hidden(params, batch, dropout_key, mutable=["intermediates"])
        return hidden_BTD, watching.flags(found["intermediates"])

    def _hidden(self, params, batch, dropout_key, mutable):
        return self.module.apply(
            {"params": params},
            batch["encoder_input_tokens"],
            batch["decoder_input_tokens"],
            batch["decoder_target_tokens"],
            batch.get("encoder_segment_ids"),
            batch.get("decoder_segment_ids"),
            enable_dropout=dropout_key is not None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            mutable=mutable,
            method="hidden",
        )

    def head(self, params: Params) -> jax.Array:
        return head(self.config, params)

    def for_decoding(self, params: Params) -> tuple["T5Student", Params]:
        if self.config.lora is not None:
            params = lora.merge(params, self.config.lora)
        config = dataclasses.replace(self.config, scan_layers=False, remat="none", lora=None)
        return dataclasses.replace(self, config=config), unstack_layers(params)

    @property
    def cache_shape(self) -> CacheShape:
        cfg = self.config
        return CacheShape(cfg.num_decoder_layers, cfg.num_heads, cfg.head_dim, cfg.dtype)

    def prefill(self, params: Params, tokens_BS: jax.Array) -> Prompts:
        return caching.prefill(self.module, params, tokens_BS, self.special_ids)

    def step(self, params: Params, tokens_BN, ages_B, head, prompts: Prompts, ring: Ring):
        return caching.step(self.module, params, tokens_BN, ages_B, head, prompts, ring)

    @classmethod
    def config_from_json(cls, fields: Mapping) -> T5Config:
        known: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
        }
        if adapters := known.get("lora"):
            listed: dict[str, Any] = {
                n: tuple(v) if n == "targets" else v for n, v in adapters.items()
            }
            known["lora"] = lora.Lora(**listed)
        return T5Config(**known)

    @classmethod
    def from_hugging_face(
        cls, settings: Mapping, tensors: Mapping[str, Tensor], place: str
    ) -> tuple["T5Student", dict[str, Tensor]]:
        config = huggingface.model_config(settings, place)
        student = cls(config, huggingface.special_ids_of(settings))
        return student, huggingface.to_ours(config, settings, tensors, place)

    def to_hugging_face(self, tensors: Mapping[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
        settings = huggingface.config_json(self.config, self.special_ids)
        return settings, huggingface.to_theirs(tensors)

    @classmethod
    def from_t5x(cls, shapes: Shapes, place: str) -> "T5Student":
        return cls(t5x.config_of(shapes, place))

    def products(self, batch: int, inputs: int, targets: int, platform: str) -> list[Product]:
        return products.products(self.config, batch, inputs, targets, platform)

    def stacks(self, batch: int, inputs: int, targets: int) -> list[Stack]:
        return products.stacks(self.config, batch, inputs, targets)

    @property
    def vocabulary_weights(self) -> int:
        return products.vocabulary_weights(self.config)


@cache
def _parameter_shapes(config: T5Config) -> Shapes:
    # A scanned model is traced as fast with 24 layers as with one.
    scanned = T5Student(dataclasses.replace(config, scan_layers=True, lora=None))
    return unrolled_shapes(flatten(jax.eval_shape(scanned.init, jax.random.key(0))["params"]))
