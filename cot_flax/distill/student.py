"""Whom a one-line distillation teaches: a checkpoint's shape and vocabulary, as lines of gin."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cot_flax.configuration import draft
from cot_flax.errors import UserError
from cot_flax.files import path_at
from cot_flax.text.tokenizers import SentencePieceTokenizer

_SHAPE = (
    *("vocab_size", "emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers"),
    *("head_dim", "mlp_dim", "mlp_activations", "bias_per_layer", "logits_via_embedding"),
)
_FAMILIES = ("t5_1_0", "t5_1_1", "lora")  # of models/, what others include


@dataclass(frozen=True)
class Student:
    """Whom the recipe teaches.

    Attributes:
        model: a gin file of models/, or lines of gin that make the model.
        start: the checkpoint to start from; None is random.
        vocabulary: the file of its vocabulary.
        parameters: how many.
    """

    model: str
    start: str | None
    vocabulary: str
    parameters: int


def open_student(name: str, vocabulary: str | None) -> Student:
    """The student that a command names; fetches one of the hub.

    Args:
        name: a checkpoint, a name on the hub, or a gin file of models/ for random weights.
        vocabulary: a SentencePiece model; None is the one beside the checkpoint.

    Raises:
        UserError: there is none, or of no family or vocabulary that this takes.
    """
    if name.endswith(".gin"):
        shape = _shape(draft.read([str(draft.find(name, (), "--student"))]))
        if vocabulary is None:
            raise UserError(
                f"{name} without a vocabulary",
                "the SentencePiece model that the student is to have",
                "pass --vocabulary FILE",
            )
        vocabulary = _vocabulary(vocabulary)
        ids = SentencePieceTokenizer(vocabulary).vocab_size
        if ids > shape["vocab_size"]:
            raise UserError(
                f"a vocabulary of {ids:,} ids in {vocabulary} for the {shape['vocab_size']:,} rows "
                f"of {name}",
                "a row an id at least",
                "set t5.T5Config.vocab_size in a gin file of your own, or take another vocabulary",
            )
        return Student(f"include {name!r}", None, vocabulary, 0)
    from cot_flax.weights import tokenizer_files
    from cot_flax.weights.opening import open_source

    source = open_source(name)
    if source.student.family != "t5":
        raise UserError(
            f"{name}, a student of the family {source.student.family}",
            "a T5 or Flan-T5",
            "write a recipe for it: see docs/distill.md",
        )
    found = tokenizer_files.find(source, vocabulary)
    tokenizer_files.read(source, found)  # one of another student is found now
    parameters = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    model = model_lines(dataclasses.asdict(source.student.config))
    return Student(model, name, _vocabulary(str(found)), parameters)


def model_lines(config: Mapping) -> str:
    """Lines of gin that make a T5 of a shape: a file of models/ that has it, or its numbers."""
    known = sorted((draft.gin_root() / "models").glob("*.gin"))
    of_t5_first = sorted(known, key=lambda path: not path.stem.startswith("t5"))
    for path in (path for path in of_t5_first if path.stem not in _FAMILIES):
        shape = _shape(draft.read([str(path)]))
        if all(_same(shape[name], config[name]) for name in _SHAPE):
            return f"include 'models/{path.name}'"
    family = "t5_1_0" if config["logits_via_embedding"] else "t5_1_1"
    numbers = "\n".join(f"  {name} = {config[name]!r}" for name in _SHAPE)
    return (
        f"from cot_flax.students import t5\ninclude 'models/{family}.gin'\nt5.T5Config:\n{numbers}"
    )


def _shape(read: draft.Draft) -> dict[str, Any]:
    """The numbers of the T5 that gin files make."""
    from cot_flax.students.t5.config import T5Config

    given = {
        parameter: read.resolved(binding.value)[1]
        for (_, _, owner, parameter), binding in read.parameters.items()
        if owner == "T5Config"
    }
    return {name: (dataclasses.asdict(T5Config()) | given)[name] for name in _SHAPE}


def _same(one, other) -> bool:
    as_list = [list(value) if isinstance(value, (list, tuple)) else value for value in (one, other)]
    return as_list[0] == as_list[1]


def _vocabulary(path: str) -> str:
    if not path_at(path).is_file():
        raise UserError(f"no file {path}", "a SentencePiece model", "correct --vocabulary")
    if not path.endswith(".model"):
        raise UserError(
            f"the tokenizer {path}", "a SentencePiece model", "take a T5 with a spiece.model"
        )
    return path
