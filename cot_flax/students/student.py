"""What a student is to everything else: trainer, generator, weights, planner and hosts know this.

A family of models is one folder beside this file. It holds a frozen config that goes to JSON and
back, and one class with the members of `Student`, decorated with `add_family`. Nothing outside the
folder names it.

Shape letters, here and in the families: B batch (in generation: prompts), N samples of a prompt,
S input tokens, T target tokens, L tokens that a ring holds, D width, F mlp width, H heads, C width
of a head, V vocabulary, P places that the guard watches.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import jax

from cot_flax import students
from cot_flax.errors import UserError
from cot_flax.students.layouts import Layout
from cot_flax.students.lora import Lora
from cot_flax.students.parameters import Shapes, Tensor
from cot_flax.students.products import Product
from cot_flax.text.tokenizers import T5_SPECIAL_IDS, SpecialIds

Params = dict[str, Any]
"""A tree of parameters. A scanned stack holds its layers under `layers`, with a leading axis; an
unrolled one under `layers_0`, `layers_1`, ... (parameters.py turns one into the other). There are
at most two stacks: an encoder's and a decoder's."""


class CacheShape(NamedTuple):
    """What a decoder keeps of each of its layers: H heads of C numbers for keys and for values."""

    layers: int
    heads: int
    head_dim: int
    dtype: str


class Prompts(NamedTuple):
    """What a decoder reads of B prompts: made once, shared by all samples of a prompt.

    Attributes:
        keys: of each layer, [B, H, C, S].
        values: of each layer, [B, H, S, C].
        bias: float32 [B, 1, 1, S]; forbids padding.
        start_B: int32, the token that is fed first.
        length_B: int32, how many tokens the decoder has read before that one.
    """

    keys: list[jax.Array]
    values: list[jax.Array]
    bias: jax.Array
    start_B: jax.Array
    length_B: jax.Array


class Ring(NamedTuple):
    """The last L keys and values of each layer, of N samples a prompt: each [B, N, H, L, C].

    At every step all prompts write to the same column, the head, and a prompt sees as many columns
    back as it has written. So prompts of different ages step together, and a new one needs no
    clearing of what its predecessor left. Column `l` is (head - l) mod L tokens back.
    """

    keys: list[jax.Array]
    values: list[jax.Array]


class Stack(NamedTuple):
    """Layers that see the same tokens, for the planner: `layers` layers over `tokens` tokens."""

    tokens: int
    layers: int


class Student(Protocol):
    """A model of one family with its shape and the special ids of its vocabulary.

    Frozen and hashable: programs are compiled for it. Parameters are apart, in trees of arrays.

    Attributes:
        family: the name in checkpoints and in JSON.
        config_class: of `config`.
        model_types: `model_type` in Hugging Face's config.json.
        config: a frozen dataclass. All have `vocab_size` (rows of the embedding), `emb_dim`,
            `dtype` and `residual_dtype`, `remat`, `scan_layers`, `lora` and `attention`; a family
            whose models are small may fix them.
        flexible: fields of `config` that a run may have otherwise than the checkpoint it reads.
        special_ids: pad, end and start, of the vocabulary that the parameters belong to.
        layout: how its batches are laid out.
        places: names of the P places that `hidden_watched` watches, in the order of the forward
            pass; the last one is "logits", which the loss watches.
        forward_order: names of modules in the order in which they run, to sort parameters by.
    """

    family: ClassVar[str]
    config_class: ClassVar[type]
    model_types: ClassVar[tuple[str, ...]]
    flexible: ClassVar[tuple[str, ...]]
    forward_order: ClassVar[tuple[str, ...]]
    config: Any
    special_ids: SpecialIds

    @property
    def layout(self) -> Layout: ...

    @property
    def places(self) -> Sequence[str]: ...

    @property
    def uses_dropout(self) -> bool: ...

    @property
    def lora(self) -> Lora | None: ...

    # Parameters.

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Draws `{"params": ..., "params_axes": ...}`: parameters and their logical axes.

        The axes are flax's `AxisMetadata`, by the names of `training.sharding.MeshConfig.rules`.
        """
        ...

    def parameter_shapes(self) -> Shapes:
        """The shape of every parameter by its dotted name: layers unrolled, no adapters."""
        ...

    # Training.

    def hidden(
        self, params: Params, batch: Mapping[str, jax.Array], *, dropout_key=None
    ) -> jax.Array:
        """The last layer's output, hidden_BTD in float32; times `head` it is the logits.

        Args:
            batch: the keys of `layout`.
            dropout_key: None switches dropout off.
        """
        ...

    def hidden_watched(
        self, params: Params, batch: Mapping[str, jax.Array], *, dropout_key=None
    ) -> tuple[jax.Array, jax.Array]:
        """The same, and boolean [P - 1]: whether a place gave something that is not finite."""
        ...

    def head(self, params: Params) -> jax.Array:
        """The LM head, head_DV in float32."""
        ...

    # Generation.

    def for_decoding(self, params: Params) -> tuple["Student", Params]:
        """Student and parameters as the three methods below need them: unrolled, no adapters."""
        ...

    @property
    def cache_shape(self) -> CacheShape: ...

    def prefill(self, params: Params, tokens_BS: jax.Array) -> Prompts:
        """Reads prompts, int32 [B, S] as `layout.prompt` makes them, padded with `pad`."""
        ...

    def step(
        self, params: Params, tokens_BN, ages_B, head, prompts: Prompts, ring: Ring
    ) -> tuple[jax.Array, Ring]:
        """Feeds one token a sample.

        Args:
            ages_B: int32, how many tokens the samples of a prompt were fed before.
            head: int32, the column of the ring to write to; one more (modulo L) every step.

        Returns:
            float32 logits [B, N, V] and the new ring.
        """
        ...

    # Files.

    @classmethod
    def config_from_json(cls, fields: Mapping[str, Any]) -> Any:
        """The config of what `dataclasses.asdict` gave, after JSON; others have defaults."""
        ...

    @classmethod
    def from_hugging_face(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], place: str
    ) -> tuple["Student", dict[str, Tensor]]:
        """The student of a config.json, and its tensors by our names, layers unrolled.

        Raises:
            UserError: a model of this family that its config cannot express.
        """
        ...

    def to_hugging_face(
        self, tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The config.json of a student, and its tensors by Hugging Face's names.

        Raises:
            UserError: a shape that transformers does not have.
        """
        ...

    @classmethod
    def from_t5x(cls, shapes: Shapes, place: str) -> "Student | None":
        """The student of parameters in a checkpoint of T5X, which stores no config.

        None where T5X has no such family.

        Raises:
            UserError: they are not those of this family.
        """
        ...

    # Planning.

    def products(self, batch: int, inputs: int, targets: int, platform: str) -> list[Product]:
        """Every matrix product of one forward pass over `batch` rows, padding included.

        Args:
            inputs, targets: a run's TASK_FEATURE_LENGTHS.
            platform: "tpu", "gpu" or "cpu": which attention is fused there.
        """
        ...

    def stacks(self, batch: int, inputs: int, targets: int) -> list[Stack]:
        """The stacks of layers, and the tokens that pass through each, padding included."""
        ...

    @property
    def vocabulary_weights(self) -> int:
        """Parameters of the embedding and, where it is another matrix, of the head."""
        ...


# Classes with the members of Student; a protocol has no constructor to call.
_FAMILIES: dict[str, type[Any]] = {}
_Family = TypeVar("_Family", bound=type[Any])


def add_family(cls: _Family) -> _Family:
    """Makes a family known: a class decorator."""
    _FAMILIES[cls.family] = cls
    return cls


def families() -> Mapping[str, type[Any]]:
    """Every family by its name: those of the folders here, and what else was added."""
    for module in pkgutil.iter_modules(students.__path__):
        if module.ispkg:
            importlib.import_module(f"{students.__name__}.{module.name}")
    return _FAMILIES


def build(config: Any, special_ids: SpecialIds = T5_SPECIAL_IDS) -> Student:
    """The student of a config of any family.

    Raises:
        UserError: a config of no family.
    """
    for family in families().values():
        if isinstance(config, family.config_class):
            return family(config, special_ids)
    raise UserError(
        f"a model config of type {type(config).__name__}",
        f"one of {sorted(f.config_class.__name__ for f in families().values())}",
        "set MODEL to the config of a family, and import its module in the gin file",
    )


def to_json(student: Student) -> dict[str, Any]:
    """A student as JSON: its family, special ids and the fields of its config."""
    named = {"family": student.family, "special_ids": student.special_ids._asdict()}
    return named | dataclasses.asdict(student.config)


def from_json(fields: Mapping[str, Any], place: str) -> Student:
    """The inverse of `to_json`, after JSON; without a family it is a T5 of T5's vocabulary.

    Args:
        place: where the fields were found, for the message.

    Raises:
        UserError: a family that is not known here, or fields that it does not have.
    """
    rest = dict(fields)
    name = rest.pop("family", "t5")
    special_ids = SpecialIds(**rest.pop("special_ids", T5_SPECIAL_IDS._asdict()))
    family = families().get(name)
    if family is None:
        raise UserError(
            f"a student of family {name!r} at {place}",
            f"one of {sorted(families())}",
            "import the module of the family in the gin file",
        )
    try:
        return family(family.config_from_json(rest), special_ids)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"a config that is not of family {name!r} at {place} ({error})",
            f"the fields of {family.config_class.__name__}",
            "use the version of cot-flax that wrote it",
        ) from error
