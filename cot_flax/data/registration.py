"""`add_cot_task`: one call registers a data set in the four formats, and their mixture."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gin
import seqio
import tensorflow as tf

from cot_flax.data import preprocessors
from cot_flax.data.cards import TaskCard
from cot_flax.data.exemplars import ExemplarChoice, Room, pool_maker
from cot_flax.data.features import T5Vocabulary, output_features
from cot_flax.errors import UserError
from cot_flax.store import layout
from cot_flax.store.tasks import StoreSource, StoreTask
from cot_flax.text import answers, scoring
from cot_flax.text.prompting import Prompting
from cot_flax.text.prompts import (
    ENGLISH,
    FORMATS,
    Exemplar,
    is_cot,
    is_few_shot,
)
from cot_flax.text.templates import Template, find_template, named
from cot_flax.text.wording import Wording

GIN_MODULE = "cot_flax.data.registration"
KIND = "answer_kind"
"""The field of a record whose answer is of another kind than its task's; "" is the task's."""


_ON_DEMAND: list[Callable[[str], None]] = []
_REGISTERED: dict[str, tuple[TaskCard, ExemplarChoice | None, "_Texts"]] = {}
_MIXTURES: set[str] = set()  # of formats, whose rates gin may bind


@gin.configurable(module=GIN_MODULE)
def prompting(
    shots: int | None = None,
    template: str | Template | None = None,
    seed: int = 0,
    instruction: str | None = None,
) -> dict:
    """How prompts and targets are made; None is the task's own.

    `registration.prompting.shots = 8` is for all tasks; under the scope of a data set
    (`gsm8k/registration.prompting.shots = 8`) for its tasks; under that of a task
    (`gsm8k_few_shot_cot/...`) for this one, whatever else is bound.

    Args:
        shots: exemplars a prompt, where they are drawn.
        template: a name of `TEMPLATES`, or a `Template`.
        seed: of the draw.
        instruction: what stands before exemplars and question; "" is nothing.
    """
    return {"shots": shots, "template": template, "seed": seed, "instruction": instruction}


@gin.configurable(module=GIN_MODULE)
def format_rates(
    few_shot_cot: float = 0.4,
    zero_shot_cot: float = 0.4,
    few_shot_answer: float = 0.1,
    zero_shot_answer: float = 0.1,
) -> dict[str, float]:
    """The mixing rates of every `<name>_cot_mix`; bind them under the scope `<name>_cot_mix`."""
    return dict(locals())


@gin.configurable(module=GIN_MODULE)
def task_name(pattern: str, dataset: str | None = None) -> str:
    """A task's name, for gin files that leave the data set open: `{dataset}` of a pattern filled.

    Raises:
        UserError: no data set.
    """
    if not dataset:
        raise UserError(f"no data set for {pattern}", "its name", "pass --gin.DATASET=NAME")
    return pattern.replace("{dataset}", dataset)


@gin.configurable(module=GIN_MODULE)
def answer_mode(mode: str = "flexible") -> str:
    """How SeqIO's metrics read answers, as T5X reports them; see `answers.extract_answer`."""
    return mode


def add_cot_task(
    name: str,
    source: seqio.DataSource,
    *,
    parse: Callable[[dict], dict] | None = None,
    exemplars: seqio.DataSource | None = None,
    fixed_exemplars: Sequence[Exemplar] | Callable[[], Sequence[Exemplar] | None] | None = None,
    shots: int | Callable[[], int] = 4,
    formats: Sequence[str] = FORMATS,
    answer_kind: str | Callable[[], str] = "number",
    wording: Wording | Callable[[], Wording] = ENGLISH,
    template: str | Template | Callable[[], str | Template] = "t5",
    instruction: str | Callable[[], str | None] | None = None,
    role: str = "train",
    max_tokens: int | None = None,
    seen_by_flan: bool = False,
    may_leak: str = "",
    vocabulary: seqio.Vocabulary | None = None,
    teacher_store: Callable[[], str | None] | None = None,
    names: Mapping[str, str] | None = None,
    rates: Mapping[str, float] | None = None,
    chains: preprocessors.Chains = "all",
    cut: Callable[[], Mapping[str, int]] | None = None,
    group: str = "",
) -> None:
    """Registers `<name>_<format>` for every format and their mixture `<name>_cot_mix`.

    With a `teacher_store` it registers `<name>_teacher_<format>` and `<name>_teacher_cot_mix`, too.
    Their train split is the store's chains with the teacher's rows, without those on questions of
    the held-out splits of `source`; their other splits are those of `source`.

    Args:
        name: the data set's name.
        source: any SeqIO data source with a train split, and validation or test to evaluate on.
        parse: makes one record of the source (a dict of tensors) into `id`, `question`,
            `rationale` and `answer`; None where it has them already. Other fields pass through;
            an integer `steps` lets the evaluation report by number of steps, a text `answer_kind`
            is the kind of this record's answer where it is not the task's.
        exemplars: the source whose train split the few-shot exemplars come from, with the four
            fields; by default `source`. None of them may stand in its held-out splits.
        fixed_exemplars: those of every few-shot prompt, or what gives them when they are needed:
            all are shown in their order, but for a question itself. Nothing is drawn then, unless
            a function gives None.
        shots: exemplars a prompt where they are drawn and gin binds no number, or what gives it.
        formats: those of the four that make sense, for instance only answers without rationales.
        answer_kind: "number", "choice", "yes_no", "text" or "math", one of `answers.FAMILIES`
            such as "choice A-E", or one that `answers.add_answer_kind` added before; or what gives
            it when it is needed.
        wording: cue, closing sentence and answer markers, such as `LANGUAGES["zh"].wording` or
            `Wording("Pensemos", "La respuesta es")`; or what gives it when it is needed.
        template: the layout of inputs and targets, where gin binds none: a name of `TEMPLATES`, a
            `Template`, or what gives one when it is needed.
        instruction: what to do, before exemplars and question, or what gives it when it is needed.
        role: "train", "transfer" or "general"; see `TaskCard`.
        max_tokens: that no output should exceed, where the data set has such a limit.
        seen_by_flan: Flan-T5 was trained on it.
        may_leak: why questions of its held-out splits may stand among the exemplars, such as whose
            split it is; cards and results carry it. A question is never its own exemplar.
        vocabulary: of inputs and targets; by default T5's.
        teacher_store: gives, when the data is read, the folder that `cot-flax prepare` made of a
            teacher's chains on this data set, for instance a function that gin configures. Its
            manifest says how many entries a position has.
        names: instead of the formats, and of "cot_mix", what follows `<name>_`.
        rates: of the formats in the mixture, where gin binds none; formats without one are not in
            it. By default all are.
        chains: "some" where records may lack a rationale: they are asked for the answer alone.
        cut: gives the lengths of inputs and targets to which long questions and rationales are cut;
            by default longer examples are left out. See `preprocessors.cut`.
        group: the field whose value a question and its exemplars share. Of a group with few, and
            where inputs are cut beside a long question, fewer than `shots` are shown. A teacher's
            store does not have the field: there are no few-shot formats of it.

    Raises:
        UserError: an unknown answer kind, format, template or role, a limit below 1, or exemplars
            that are both fixed and drawn.
    """
    if exemplars and fixed_exemplars:
        raise UserError(
            f"exemplars and fixed_exemplars of {name}", "one of the two", "leave one out"
        )
    if not callable(answer_kind):
        answers.check_kind(answer_kind)
    if not callable(template):
        find_template(template)
    vocabulary = vocabulary or T5Vocabulary()
    shown = (exemplars, None) if exemplars else (source, parse)
    pools = pool_maker(*shown, may_leak=bool(may_leak), group=group, data=source)
    told = {"answer_kind": answer_kind, "role": role, "max_tokens": max_tokens}
    shared = {
        "texts": (wording, template, instruction),
        "told": told | {"seen_by_flan": seen_by_flan, "may_leak": may_leak},
        "formats": formats,
        "fixed_exemplars": fixed_exemplars,
        "shots": shots,
        "pools": pools,
        "vocabulary": vocabulary,
        "names": names or {},
        "rates": rates or {},
        "chains": chains,
        "cut": cut,
        "group": group,
    }
    first = [functools.partial(_parse, parse=parse)] if parse else []
    _register(name, source, first, **shared)
    if teacher_store:
        stored = StoreSource(teacher_store, vocabulary=vocabulary, data=source, parse=parse)
        if group:
            shared["formats"] = [format for format in formats if not is_few_shot(format)]
        _register(f"{name}_teacher", stored, stored.preprocessors(), store=stored, **shared)


def _register(
    name,
    source,
    first,
    *,
    told,
    formats,
    texts,
    fixed_exemplars,
    shots,
    pools,
    vocabulary,
    names,
    rates,
    chains,
    cut,
    group,
    store=None,
):
    """Registers the formats of a source and their mixture; `first` are its own preprocessors."""
    mixture = f"{name}_{names.get('cot_mix', 'cot_mix')}"
    tasks = {format: f"{name}_{names.get(format, format)}" for format in formats}
    mixed = [format for format in formats if not rates or format in rates]
    room = None
    if cut and group:
        room = Room(lambda: cut()["inputs"], lambda text: len(vocabulary.encode(text)))
    for format, task in tasks.items():
        settings = functools.partial(_prompting, name, task)
        own, rule = _Texts(told["answer_kind"], *texts, settings), None
        if is_few_shot(format):
            rule = ExemplarChoice(fixed_exemplars, pools, shots, settings, room)
        card = TaskCard(
            task, name, format, exemplars=None, shots=0, seed=None, template="t5", **told
        )
        writing = {"format": format, "rule": rule, "layout": own.layout, "chains": chains}
        steps: list = list(first)
        if store and is_cot(format):
            steps.append(functools.partial(_check_chains, store=store, layout=own.layout))
        if not is_cot(format):
            steps.append(preprocessors.first_samples)
        elif chains == "all":
            steps.append(preprocessors.with_chains)
        steps += [
            functools.partial(
                preprocessors.write_prompt, cuts=cut is not None, group=group, **writing
            ),
            functools.partial(
                preprocessors.tokenize,
                vocabulary=vocabulary,
                format=format,
                rows=store.top_k if store else None,
            ),
        ]
        if store is None:  # what SeqIO's cache holds; a store is one already
            steps.append(seqio.CacheDatasetPlaceholder())
        if cut:
            steps.append(functools.partial(preprocessors.cut, lengths=cut, task=task))
        steps.append(preprocessors.drop_overlong)
        seqio.TaskRegistry.add(
            task,
            source=source,
            preprocessors=steps,
            output_features=output_features(vocabulary, rows=store is not None),
            postprocess_fn=_postprocess,
            metric_fns=[functools.partial(_accuracy, kind=own.kind)],
            task_cls=StoreTask if store else CotTask,
        )
        _REGISTERED[task] = card, rule, own
        _MIXTURES.add(mixture)
    seqio.MixtureRegistry.add(
        mixture, [(tasks[format], _rate(mixture, format, rates)) for format in mixed]
    )


def add_tasks_on_demand(add: Callable[[str], None]) -> None:
    """Has `add` register tasks whose names gin alone knows, when a name is looked for.

    Args:
        add: is called with every name that is looked for, and registers it if it is its own and gin
            binds it otherwise than before; with "" it registers all of its own.
    """
    _ON_DEMAND.append(add)


def demand(name: str) -> None:
    """Has a task or mixture registered that is made on demand, if the name is that of one."""
    for add in _ON_DEMAND:
        add(name)


def scopes() -> dict[str, set[str]]:
    """The gin scopes that exist, by what may be bound under them (configuration asks)."""
    for add in _ON_DEMAND:
        add("")
    cards = [card for card, *_ in _REGISTERED.values()]
    return {
        "prompting": {name for card in cards for name in (card.name, card.dataset)},
        "format_rates": _MIXTURES & set(seqio.MixtureRegistry.names()),
    }


class CotTask(seqio.Task):
    """A task that is made as it is read where SeqIO's cache lacks it, even if the cache is asked.

    T5X's run files ask for the cache unless they are told otherwise.
    """

    def get_dataset(self, sequence_length=None, split="train", use_cached=False, **settings):
        """As SeqIO's."""
        cached = use_cached and self._is_cached(split)
        return super().get_dataset(sequence_length, split, cached, **settings)

    def _is_cached(self, split: str) -> bool:
        folder = self.supports_caching and self.cache_dir
        return bool(folder) and tf.io.gfile.exists(seqio.get_cached_info_path(folder, split))


def cot_task(name: str) -> TaskCard:
    """The card of a task, its prompts as gin binds them.

    Raises:
        UserError: `add_cot_task` did not register it, or there are no exemplars to show.
    """
    card, rule, texts = _registered(name)
    facts = rule.facts() if rule else {}
    return dataclasses.replace(card, **facts, **texts.facts())


def layout_of(name: str) -> preprocessors.Layout:
    """How the texts of a task are laid out, as gin binds it; errors as `cot_task`."""
    *_, texts = _registered(name)
    return texts.layout()


def prompter_of(name: str) -> Callable[..., str]:
    """What makes a task's input of a question and its id, as evaluation shows it to a student.

    Where exemplars are those of a group, its name is the third argument.

    Raises:
        UserError: as `cot_task`.
    """
    card, rule, texts = _registered(name)
    return preprocessors.prompter(card.format, rule, texts.layout)


def prompts_of(tasks: Sequence[seqio.Task]) -> dict[str, dict]:
    """How the prompts of tasks look, by name, as run.json keeps it: see `prompting.Prompting`.

    Where exemplars are drawn, those of one draw stand for them. Tasks that `add_cot_task` did not
    register are left out.
    """
    found = {}
    for task in tasks:
        if task.name in _REGISTERED:
            card, rule, texts = _REGISTERED[task.name]
            shown = tuple(rule.choice(card.format, texts.layout())("", "", "")) if rule else ()
            about = {"dataset": card.dataset, "format": card.format}
            found[task.name] = about | texts.prompting(shown).to_json()
    return found


def _registered(name):
    demand(name)
    if name not in _REGISTERED:
        raise UserError(
            f"task {name!r}",
            f"one that add_cot_task registered: {', '.join(sorted(_REGISTERED)) or 'none is'}",
            "correct EVAL_TASKS or import the task's module in the gin file",
        )
    return _REGISTERED[name]


def stores_of(tasks: Sequence[seqio.Task]) -> dict[str, str]:
    """The fingerprints of the stores that tasks are read from, by data set."""
    return {
        _REGISTERED[task.name][0].dataset: layout.fingerprint(task.cache_dir)
        for task in tasks
        if isinstance(task, StoreTask) and task.name in _REGISTERED
    }


def kind_of(name: str, record: Mapping[str, bytes]) -> str:
    """The answer kind of a task's record: its own where it has the field KIND, else the task's."""
    *_, texts = _registered(name)
    return texts.kind(tf.compat.as_text(record.get(KIND, "")))


def registered() -> list[TaskCard]:
    """Of the tasks that `add_cot_task` registered, in order, without what gin binds of prompts."""
    return [card for card, *_ in _REGISTERED.values()]


@dataclass(frozen=True)
class _Texts:
    """The texts of a task beside its records; what is a function is asked when it is needed."""

    answer_kind: str | Callable[[], str]
    wording: Wording | Callable[[], Wording]
    template: str | Template | Callable[[], str | Template]
    instruction: str | Callable[[], str | None] | None
    settings: Callable[[], dict]

    def layout(self) -> preprocessors.Layout:
        template = self._template().worded(_given(self.wording))
        return preprocessors.Layout(template, self._instruction())

    def kind(self, own: str = "") -> str:
        """The kind of answers that stand behind the markers of wording and template, too.

        Args:
            own: of one record; "" is the task's.
        """
        template, wording = self._template(), _given(self.wording)
        heads = (*template.worded(wording).heads, *wording.heads)
        return answers.marked_kind(own or _given(self.answer_kind), heads, template.stop)

    def prompting(self, exemplars: tuple[Exemplar, ...]) -> Prompting:
        """All of it, for one who asks without the task."""
        layout, kind = self.layout(), _given(self.answer_kind)
        return Prompting(
            layout.template,
            layout.instruction,
            kind,
            answers.labels_of(kind),
            _given(self.wording).heads,
            exemplars,
        )

    def facts(self) -> dict:
        wording, template = _given(self.wording), named(self._template())
        facts = {"answer_kind": self.kind(), "template": template}
        facts |= {"instructed": bool(self._instruction())}
        return facts | {"cue": wording.cue, "closing": wording.closing}

    def _instruction(self) -> str:
        bound = self.settings()["instruction"]
        return (_given(self.instruction) or "") if bound is None else bound

    def _template(self) -> Template:
        bound = self.settings()["template"]
        return find_template(_given(self.template) if bound is None else bound)


def _check_chains(dataset, *, store: StoreSource, layout: Callable[[], preprocessors.Layout]):
    """Chains of a store are closed already: the task's template must be theirs."""
    if "targets" in dataset.element_spec:
        store.check_template(layout().template)
    return dataset


def _given(value):
    return value() if callable(value) else value


def _prompting(dataset: str, task: str) -> dict:
    with gin.config_scope([task]):
        own = gin.get_bindings(prompting, inherit_scopes=False)
    with gin.config_scope([dataset]):
        return prompting(**own)


def _rate(mixture: str, format: str, own: Mapping[str, float]) -> Callable[[seqio.Task], float]:
    def rate(task):
        del task
        with gin.config_scope(mixture):
            bound = gin.get_bindings(format_rates)
            return format_rates(**{name: n for name, n in own.items() if name not in bound})[format]

    return rate


def _parse(dataset, parse):
    return dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)


def _postprocess(output, *, example=None, is_target=False):
    """SeqIO's hook: the gold answer of a target, with its own kind if any; a prediction's text."""
    if not is_target:
        return output
    answer = tf.compat.as_text(example["answer"])
    own = tf.compat.as_text(example.get(KIND, ""))
    return (answer, own) if own else answer


def _accuracy(targets, predictions, *, kind):
    """SeqIO's metric: accuracy and parse failures of texts against gold answers."""
    pairs = [(target, "") if isinstance(target, str) else target for target in targets]
    kinds = {own: kind(own) for _, own in pairs}
    records = scoring.score(
        predictions,
        [gold for gold, _ in pairs],
        kind=[kinds[own] for _, own in pairs],
        mode=answer_mode(),
    )
    summary = scoring.summarize(records)
    told = {"accuracy": summary["accuracy"], "parse_failures": summary["parse_failure_rate"]}
    return told | {name: summary[name] for name in ("undecided",) if name in summary}
