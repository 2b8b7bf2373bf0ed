"""A data set of one's own, by gin alone: `your_data_<format>`, and from a store the teacher's.

`your_data_bytes_<format>` and `your_data_bytes_teacher_<format>` are the same of bytes, for ByT5.
`chains.dataset.DataSet` says what files and columns are. Several data sets stand beside each other
under scopes: with `tickets/your_data.data.of = @tickets/dataset.DataSet()` there are
`tickets_<format>`, `tickets_cot_mix` and so on, registered when a name is looked for.
"""

import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict

import gin
import seqio

from cot_flax.chains.dataset import SPLITS, DataSet, Item, Reading
from cot_flax.data.registration import add_cot_task, add_tasks_on_demand, registered
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.text.wording import LANGUAGES

_MODULE = "cot_flax.tasks.your_data"
_NAME = re.compile(r"[a-z]\w*")
_NAMES: list[str] = []


@gin.configurable(module=_MODULE)
def data(of: DataSet | None = None, language: str = "en") -> tuple[DataSet, str]:
    """A data set, and the language of the words in its prompts and targets."""
    if of is None:
        remedy = "pass --gin.DATA=FILE with experiments/your_data.gin or runs/your_data.gin"
        raise UserError("no data", "files of your own", remedy)
    if language not in LANGUAGES:
        wanted = f"one of {', '.join(LANGUAGES)}"
        raise UserError(f"language {language!r}", wanted, "correct LANGUAGE")
    return of, language


@gin.configurable(module=_MODULE)
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of a teacher's samples."""
    return directory


def scopes() -> dict[str, set[str]]:
    """The gin scopes that exist, by what may be bound under them (configuration asks)."""
    _add_bound("")
    return {"data": set(_NAMES), "teacher_store": set(_NAMES)}


def register(name: str) -> None:
    """Registers the tasks of the data set that gin binds under the scope of this name.

    Raises:
        UserError: the name is another data set's, or none that a task can have.
    """
    if name in _NAMES:
        return
    others = {card.dataset for card in registered()}
    if not _NAME.fullmatch(name) or name in others:
        got = f"the data set {name!r}" + ", whose tasks are there already" * (name in others)
        wanted = "a new name of lower-case letters, digits and _"
        raise UserError(got, wanted, "choose another scope for your_data.data")
    _NAMES.append(name)
    with_chain = records_source(lambda split: _exemplars(name, split), SPLITS)
    for suffix, vocabulary in {"": None, "_bytes": seqio.ByteVocabulary()}.items():
        add_cot_task(
            f"{name}{suffix}",
            records_source(lambda split: _records(_reading(name).splits[split], split), SPLITS),
            exemplars=with_chain,
            answer_kind=lambda: _reading(name).answer_kind,
            wording=lambda: LANGUAGES[_bound(name)[1]].wording,
            vocabulary=vocabulary,
            teacher_store=lambda: _in_scope(name, teacher_store),
        )


def _in_scope(name: str, function):
    if name == "your_data":
        return function()
    with gin.config_scope(name):
        return function()


def _bound(name: str) -> tuple[DataSet, str]:
    return _in_scope(name, data)


def _reading(name: str) -> Reading:
    return _read(name, gin.config_str())


@functools.lru_cache(maxsize=8)
def _read(name: str, config: str) -> Reading:
    """Reads once, and again when gin has bound something else; says what was found."""
    del config
    reading = _bound(name)[0].read()
    print(reading.summary, file=sys.stderr)
    return reading


def _records(items: Iterable[Item], split: str = "train") -> list[dict]:
    """Of the other splits all are asked, with or without a chain."""
    return [
        asdict(item) | {"has_chain": int(split != "train" or bool(item.rationale))}
        for item in items
    ]


def _exemplars(name: str, split: str) -> list[dict]:
    """Those with a chain, where there are any: the others show nothing of reasoning."""
    items = _reading(name).splits[split]
    return _records([item for item in items if item.rationale] or items)


def _add_bound(wanted: str) -> None:
    """Adds the tasks of the data sets that gin binds under scopes, if a name is one of theirs."""
    for scope, selector in list(gin.config._CONFIG):
        is_own = not wanted or wanted.startswith(f"{scope}_")
        if selector == f"{_MODULE}.data" and scope and is_own:
            register(scope)


register("your_data")
add_tasks_on_demand(_add_bound)
