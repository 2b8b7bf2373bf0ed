"""Which worked examples go before a question: fixed ones, or drawn ones of a pool."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gin
import seqio

from cot_flax.data.preprocessors import BLOCK, Choose, Layout
from cot_flax.errors import UserError
from cot_flax.text.prompts import (
    Exemplar,
    ExemplarPool,
    FixedExemplars,
    build_input,
    check_no_leak,
    normalize_question,
    show,
)

Pools = Mapping[str, ExemplarPool]
"""By the group of the questions whose exemplars they are; "" is that of all where none is named."""
_DRAWN = 4  # exemplars that are tried for each that is shown, where some may be too long


@dataclass(frozen=True)
class Room:
    """Where inputs are cut: only exemplars are shown that fit beside the question.

    Attributes:
        tokens: gives the most tokens of inputs, the end included.
        size: the tokens of a text.
    """

    tokens: Callable[[], int]
    size: Callable[[str], int]

    def chooser(self, format: str, layout: Layout, shots: int):
        """Of drawn exemplars for a question the first `shots` that fit, one after another."""
        template, instruction = layout
        most = self.tokens() - 1  # the end

        @functools.cache
        def size(exemplar: Exemplar) -> int:
            return self.size(show(exemplar, format, template) + template.separator)

        def choose(question: str, drawn: Sequence[Exemplar]) -> tuple[Exemplar, ...]:
            asked = format.replace("few_shot", "zero_shot")
            left = most - self.size(
                build_input(question, asked, template=template, instruction=instruction)
            )
            shown = []
            for exemplar in drawn:
                if size(exemplar) <= left and len(shown) < shots:
                    shown.append(exemplar)
                    left -= size(exemplar)
            return tuple(shown)

        return choose


@dataclass(frozen=True)
class ExemplarChoice:
    """Fixed exemplars, all in their order; where there are none, drawn ones of a pool.

    Attributes:
        fixed: those of every prompt, or what gives them.
        pools: gives those that are drawn from.
        shots: how many, or what gives it, unless gin binds a number.
        settings: gives what gin binds (`registration.prompting`).
        room: for drawn ones, where inputs are cut. There, and of a group with few, fewer are shown.
    """

    fixed: Sequence[Exemplar] | Callable[[], Sequence[Exemplar] | None] | None
    pools: Callable[[], Pools]
    shots: int | Callable[[], int]
    settings: Callable[[], dict]
    room: Room | None = None

    def facts(self) -> dict:
        """Of the task's card."""
        if (fixed := self._fixed()) is not None:
            return {"exemplars": "fixed", "shots": len(fixed)}
        return {"exemplars": "drawn", "shots": self._count(), "seed": self.settings()["seed"]}

    def choice(self, format: str, layout: Layout) -> Choose:
        """See `preprocessors.ExemplarRule`."""
        if (fixed := self._fixed()) is not None:
            return lambda question, id, group: fixed.without(question)
        pools, shots, seed = self.pools(), self._count(), self.settings()["seed"]
        if self.room:
            fitting = self.room.chooser(format, layout, shots)

            def choose(question, id, group):
                pool = pools.get(group)
                count = min(len(pool) - (question in pool), _DRAWN * shots) if pool else 0
                drawn = pool.draw(question, count, f"{seed}/{id}") if count > 0 else ()
                return fitting(question, drawn)

            return choose
        (pool,) = pools.values()
        if shots >= len(pool):
            raise UserError(
                f"a pool of {len(pool)} exemplars for {shots} shots",
                "more exemplars than shots",
                "lower registration.prompting.shots or give a larger train split",
            )
        return lambda question, id, group: pool.draw(question, shots, f"{seed}/{id}")

    def _fixed(self) -> FixedExemplars | None:
        given = self.fixed() if callable(self.fixed) else self.fixed
        return None if given is None else FixedExemplars(given)

    def _count(self) -> int:
        bound = self.settings()["shots"]
        own = self.shots() if callable(self.shots) else self.shots
        return own if bound is None else bound


def pool_maker(
    source: seqio.DataSource,
    parse: Callable[[dict], dict] | None,
    *,
    may_leak: bool,
    group: str = "",
    data: seqio.DataSource | None = None,
) -> Callable[[], Pools]:
    """Makes the pools when they are first needed, and again when gin has bound something else.

    Args:
        source: its train split are the exemplars; those without a rationale are left out of groups.
        parse: as in `registration.add_cot_task`.
        may_leak: whether a question of a held-out split may be among them.
        group: the field that divides them; "" is one pool.
        data: whose held-out questions are left out of groups.
    """

    @functools.lru_cache(maxsize=1)
    def make(config: str) -> Pools:
        del config
        return _groups(source, data, group) if group else {"": _pool(source, parse, may_leak)}

    return lambda: make(gin.config_str())


def _pool(source, parse, may_leak) -> ExemplarPool:
    records = _records(source, parse, "train")
    pool = ExemplarPool(_exemplar(record) for record in records)
    for split in source.splits:
        if split != "train" and not may_leak and source.num_input_examples(split) != 0:
            check_no_leak(pool, (r["question"] for r in _records(source, parse, split)))
    return pool


def _groups(source, data, group) -> Pools:
    held_out = {
        normalize_question(record["question"])
        for split in data.splits
        if split != "train" and data.num_input_examples(split) != 0
        for record in _records(data, None, split)
    }
    found: dict[str, list[Exemplar]] = {}
    for record in _records(source, None, "train", group):
        if record["rationale"].strip() and normalize_question(record["question"]) not in held_out:
            found.setdefault(record[group], []).append(_exemplar(record))
    return {name: ExemplarPool(exemplars) for name, exemplars in found.items()}


def _exemplar(record: Mapping[str, str]) -> Exemplar:
    return Exemplar(record["question"], record["rationale"], record["answer"])


def _records(source, parse, split, *more: str):
    dataset = source.get_dataset(split, shuffle=False)
    if parse:
        dataset = dataset.map(parse)
    names = ("question", "rationale", "answer", *more)
    chosen = dataset.map(lambda record: tuple(record[name] for name in names))
    for columns in chosen.batch(BLOCK).as_numpy_iterator():
        for texts in zip(*columns, strict=True):
            yield dict(zip(names, (text.decode() for text in texts), strict=True))
