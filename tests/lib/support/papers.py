"""Every number of the four papers' systems, as recipes must bind it, with where it was read.

A section is that of ../shared/methods.md, with the authors' file. A value is from `code` (the
authors' code or files), `recalled` (a recollection of the paper that nobody confirmed) or `ours`
(paper and code are silent, or it is how we express what they do). References and macros are written
as in gin files, `@optimizers.adamw()`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Origin = Literal["code", "recalled", "ours"]


@dataclass(frozen=True)
class Number:
    """What a recipe binds, and where that was read.

    Attributes:
        value: as gin has it.
        section: of methods.md.
        origin: how sure it is.
    """

    value: Any
    section: str
    origin: Origin


Table = dict[str, Number]


def code(section: str, **values: Any) -> Table:
    return _table(section, "code", values)


def recalled(section: str, **values: Any) -> Table:
    return _table(section, "recalled", values)


def ours(section: str, **values: Any) -> Table:
    return _table(section, "ours", values)


def _table(section: str, origin: Origin, values: Mapping[str, Any]) -> Table:
    """`a__b` is `a.b`, which no keyword can be."""
    return {
        name.replace("__", "."): Number(value, section, origin) for name, value in values.items()
    }


TORCH_ADAMW = {
    "optimizers.adamw.b1": 0.9,
    "optimizers.adamw.b2": 0.999,
    "optimizers.adamw.eps": 1e-8,
    "optimizers.adamw.weight_decay": 0.01,
    "optimizers.adamw.clip_norm": None,  # neither [1] nor [3] clips
}
PLAIN_LOSS = {"Z_LOSS": 0.0, "LABEL_SMOOTHING": 0.0}  # 6.2
GREEDY = {"NUM_SAMPLES": 1, "NUM_BEAMS": 1, "TEMPERATURE": 0.0}

# [1] Fu et al. 2023 -------------------------------------------------------------------------------

FORMATS = ("few_shot_cot", "few_shot_answer", "zero_shot_cot", "zero_shot_answer")
EXAMPLES = {"few_shot_cot": 207135, "few_shot_answer": 7296} | {
    "zero_shot_cot": 207135,
    "zero_shot_answer": 7296,
}  # 1.1 and 1.3.4
MICROBATCH = {  # 1.3.4: examples of a micro-batch by format, and the micro-batches of a step
    "250m": ((25, 35, 40, 60), 3),
    "780m": ((8, 12, 18, 30), 20),
    "3b": ((2, 10, 8, 20), 30),
    "11b": ((2, 10, 8, 20), 20),
}


def microbatches(config: str, formats=FORMATS) -> dict[str, float]:
    """Of an epoch, by format; a partial one is dropped, which these ignore."""
    sizes, _ = MICROBATCH[config]
    return {
        name: EXAMPLES[name] / size * (name in formats)
        for name, size in zip(FORMATS, sizes, strict=True)
    }


def shares(config: str, formats=FORMATS) -> dict[str, float]:
    """Of micro-batches, by format: what each weighs in the loss."""
    counts = microbatches(config, formats)
    return {name: count / sum(counts.values()) for name, count in counts.items()}


def examples_a_step(config: str, formats=FORMATS) -> int:
    """The accumulated micro-batches, each of the mean number of examples, which is rounded."""
    sizes, accumulation = MICROBATCH[config]
    weights = shares(config, formats).values()
    return accumulation * round(sum(w * s for w, s in zip(weights, sizes, strict=True)))


def fu_steps(config: str, formats=FORMATS) -> int:
    """Of ten epochs with the authors' counts."""
    examples = sum(EXAMPLES[name] for name in formats)
    return math.ceil(10 * examples / examples_a_step(config, formats))


def _fu_mixture(config: str, formats=FORMATS) -> Table:
    rate = "gsm8k_teacher_cot_mix/registration.format_rates"
    rates = {f"{rate}.{name}": round(s, 4) for name, s in shares(config, formats).items()}
    batch = {"BATCH_SIZE": examples_a_step(config, formats), "MICROBATCHES": MICROBATCH[config][1]}
    # A checkpoint each 1,000, 3,000, 10,000 and 2,000 micro-batches, all of which are evaluated.
    period = {"250m": 1000, "780m": 3000, "3b": 10_000, "11b": 2000}[config]
    chosen = {"EVAL_PERIOD": round(period / MICROBATCH[config][1])}
    return code("1.3.4", **rates, **batch, MICROBATCHES_BY_TASK=True) | code("1.3.5", **chosen)


_CHOOSING = ("gsm8k_few_shot_cot", "gsm8k_zero_shot_cot")
_BEST = tuple(f"{task}/accuracy" for task in _CHOOSING)
FU = (
    code(  # 1.2: code-davinci-002
        "1.2",
        DATASET="gsm8k",
        RECIPE="fu2023",
        TEACH_SAMPLES=40,
        TEACH_TEMPERATURE=0.5,
        TEACH_MAX_TOKENS=256,
        TEACH_TOP_LOGPROBS=5,
        FILTER_RULES="fu2023",
        SIMILARITY=None,
    )
    | code("1.1", TEACH_SHOTS=8, registration__prompting__shots=4)
    | code("1.1", registration__prompting__template="fu2023")
    | code("1.3.1", ALIGNMENT="fu2023")
    | code("1.3.2", PROJECTION="fu2023", TEACHER_TOP_K=6)
    | code("1.3.3", OBJECTIVE="@losses.Objective()", KL_WEIGHT=1.0, KL_TEMPERATURE=1.0)
    | code("1.3.3", TAIL="ignore", **PLAIN_LOSS)
    | code(
        "1.3.5",
        EPOCHS=10,
        OPTIMIZER="@optimizers.adamw()",
        SCHEDULE="@optimizers.fu2023_cosine()",
        LEARNING_RATE=5e-4,
        optimizers__fu2023_cosine__warmup_steps=10,
        DROPOUT_RATE=0.0,
        DTYPE="float32",
        **TORCH_ADAMW,
    )
    | code("1.3.4", RANDOM_SEED=0)
    | code("1.4", MAX_DECODE_LENGTH=256, ANSWER_MODE="fu2023", **GREEDY)
    | ours(
        "1.3.5: no length is limited",
        TASK_FEATURE_LENGTHS={"inputs": 1280, "targets": 384},
        PACK=False,
    )
    | code("1.1", gsm8k__validation__questions="fu2023")
    | ours("1.4", TEST_TASKS=("gsm8k_zero_shot_cot", "gsm8k_few_shot_cot"))
    | ours("1.3.4", MIXTURE_OR_TASK_NAME="gsm8k_teacher_cot_mix")
    | code(
        "1.1 and 1.3.5: the best checkpoint is read off",
        EVALUATORS=("@evaluators.AccuracyEvaluator()",),
        evaluators__AccuracyEvaluator__mixture_or_task_name=_CHOOSING,
        evaluators__AccuracyEvaluator__split="validation",
        evaluators__AccuracyEvaluator__max_examples=200,
        evaluators__AccuracyEvaluator__decoding="@evaluation.Decoding()",
    )
    | ours("1.4: their prompt of four first", BEST_METRICS=_BEST)
    | ours("1.2", STORE_TASK="gsm8k_teacher_zero_shot_cot")
)
FU_STUDENTS = {  # 1.3.4 and 1.3.5: of each size its configuration of batches
    "flan_t5_base": ("250m", "google/flan-t5-base"),
    "flan_t5_large": ("780m", "google/flan-t5-large"),
    "flan_t5_xl": ("3b", "google/flan-t5-xl"),
    "flan_t5_xxl": ("11b", "google/flan-t5-xxl"),
    "t5_large": ("780m", "t5-large"),
    "t5_3b": ("3b", "t5-3b"),
}
IN_CONTEXT, ZERO_SHOT = FORMATS[:2], FORMATS[2:]


def _fu(student: str, formats=FORMATS, matches: str = "distribution") -> Table:
    config, start = FU_STUDENTS[student]
    found = FU | code("1.1", INITIAL_CHECKPOINT_PATH=start) | _fu_mixture(config, formats)
    if formats == ZERO_SHOT:
        found |= ours("1.4: it has no prompt of four", BEST_METRICS=_BEST[1:])
    if matches == "sample":  # 1.3.3: the negative log-likelihood for all formats
        found |= code("1.3.3", losses__Objective__kl_weight=0.0)
    return found


_FU_TEST = code("1.4", MAX_DECODE_LENGTH=256, **GREEDY)
_FU_PROMPT = code("1.1", registration__prompting__shots=4, ANSWER_MODE="fu2023") | code(
    "1.1", registration__prompting__template="fu2023"
)
_TWO = ("zero_shot_cot", "few_shot_cot")
_OOD = tuple(f"{name}_{format}" for name in ("multiarith", "asdiv", "svamp") for format in _TWO)
FU_TESTS = {
    "gsm8k_dev": _FU_TEST
    | _FU_PROMPT
    | code("1.1", gsm8k__validation__questions="fu2023", SPLIT="validation")
    | ours("1.4", MIXTURE_OR_TASK_NAME=tuple(f"gsm8k_{format}" for format in _TWO)),
    "math_ood": _FU_TEST | _FU_PROMPT | ours("1.4", MIXTURE_OR_TASK_NAME=_OOD),
    "bbh_cot": _FU_TEST | ours("1.4", MIXTURE_OR_TASK_NAME="bbh_cot", ANSWER_MODE="flexible"),
    "bbh_ao": _FU_TEST | ours("1.4", MIXTURE_OR_TASK_NAME="bbh_answer", ANSWER_MODE="flexible"),
}


# [2] Magister et al. 2022 -------------------------------------------------------------------------

MAGISTER_TEST = (
    recalled("2.4", **GREEDY)
    | ours("2.4", MAX_DECODE_LENGTH=256)
    | ours("2.1", MIXTURE_OR_TASK_NAME="@test/registration.task_name()")
    | ours("2.1", **{"test/registration.task_name.pattern": "{dataset}_zero_shot_cot"})
    | ours("2.1", registration__task_name__dataset="%DATASET")
    | ours("2.1", registration__prompting__template="magister2022")
    | recalled("2.1", arithmetic__held_out__folds=5)
    | ours("2.1", FOLD=0, arithmetic__held_out__fold="%FOLD")
    | recalled("2.1", symbolic__lengths__train=(2,), symbolic__lengths__test=(2, 3, 4))
)
MAGISTER = (
    MAGISTER_TEST
    | recalled("2.2", RECIPE="magister2022", TEACH_SHOTS=8, TEACH_SAMPLES=1)
    | recalled("2.2", FILTER_RULES="default")
    | ours("2.2", TEACH_TEMPERATURE=0.0, TEACH_MAX_TOKENS=256, TEACH_TOP_LOGPROBS=0)
    | ours("2.2", STORE_TASK="@teacher/registration.task_name()")
    | ours("2.1", MIXTURE_OR_TASK_NAME="@teacher/registration.task_name()")
    | ours("2.1", TEST_TASKS="@test/registration.task_name()")
    | ours("2.1", **{"teacher/registration.task_name.pattern": "{dataset}_teacher_zero_shot_cot"})
    | recalled(
        "2.3",
        OPTIMIZER="@optimizers.adafactor()",
        SCHEDULE="@optimizers.constant()",
        LEARNING_RATE=1e-3,
        WARMUP_STEPS=0,
    )
    | ours("2.3", EPOCHS=20, BATCH_SIZE=64, DROPOUT_RATE=0.1, PACK=False, **PLAIN_LOSS)
    | ours("2.3", TASK_FEATURE_LENGTHS={"inputs": 512, "targets": 384})
    | ours("2.3", OBJECTIVE="@losses.Objective()", losses__Objective__kl_weight=0.0)
)

# [3] Ho et al. 2022 -------------------------------------------------------------------------------

HO_TEST = (
    code("3.4", MAX_DECODE_LENGTH=1024, **GREEDY)
    | code("3.2", ANSWER_MODE="ho2022")
    | code("3.1", registration__prompting__template="ho2022")
    | ours("3.1", MIXTURE_OR_TASK_NAME="@test/registration.task_name()")
    | ours("3.1", **{"test/registration.task_name.pattern": "ho2022_{dataset}_zero_shot_cot"})
    | ours("3.1", registration__task_name__dataset="%DATASET")
)
HO_STORE = "ho2022_{dataset}_teacher_zero_shot_cot"
HO = (
    HO_TEST
    | code(
        "3.2",
        RECIPE="ho2022",
        D=1,
        TEACH_SAMPLES="%D",
        TEACH_TEMPERATURE="@recipes.ho2022_temperature()",  # 0 of one chain, 0.7 of several
        recipes__ho2022_temperature__samples="%D",
        TEACH_MAX_TOKENS=128,
        TEACH_SHOTS=0,
        FILTER_RULES="ho2022",
        SIMILARITY=None,
    )
    | code("3.7", TEACH_TOP_LOGPROBS=0)
    | code(
        "3.3",
        OPTIMIZER="@optimizers.adamw()",
        SCHEDULE="@optimizers.constant()",
        LEARNING_RATE=3e-4,
        WARMUP_STEPS=0,
        BATCH_SIZE=8,
        MICROBATCHES=1,
        EPOCHS=20,
        DTYPE="float32",
        TASK_FEATURE_LENGTHS={"inputs": 512, "targets": 512},
        DROPOUT_RATE=0.1,
        OBJECTIVE="@losses.Objective()",
        losses__Objective__kl_weight=0.0,
        **PLAIN_LOSS,
        **TORCH_ADAMW,
    )
    | ours("3.3: a batch is of examples", PACK=False)
    | code("3.1: 8, 32 and 128", SUBSET=None, ho2022__subset__size="%SUBSET")
    | ours("3.1", MIXTURE_OR_TASK_NAME="@teacher/registration.task_name()")
    | ours("3.1", STORE_TASK="@teacher/registration.task_name()")
    | ours("3.1", TEST_TASKS="@test/registration.task_name()")
    | ours("3.1", **{"teacher/registration.task_name.pattern": HO_STORE})
)
_HO_ANSWER = {"test/registration.task_name.pattern": "ho2022_{dataset}_zero_shot_answer"}
HO_FT = HO | code("3.1", **_HO_ANSWER, MIXTURE_OR_TASK_NAME="@test/registration.task_name()")
HO_ZS = HO_TEST | code(
    "3.1",
    registration__prompting__template="@templates.Template()",
    templates__Template__answer_input="question: {question}",
    templates__Template__answer_target="{answer}",
    **_HO_ANSWER,
)

HO_FS = HO_TEST | code(
    "3.1",
    CHECKPOINT_PATH="google/flan-t5-base",
    registration__prompting__template=None,
    **{"test/registration.task_name.pattern": "ho2022_fs_{dataset}_few_shot_cot"},
)


def _ho(family: str, size: str) -> Table:
    start = f"google/flan-t5-{size}" if family == "flan_t5" else f"t5-{size}"
    return HO | code("3.3", INITIAL_CHECKPOINT_PATH=start)


# [4] Kim et al. 2023 ------------------------------------------------------------------------------

KIM_ADAFACTOR = {
    "optimizers.adafactor.parameter_scale": False,
    "optimizers.adafactor.smallest_factored": 1,
    "optimizers.adafactor.clip_norm": 0.8,
    "optimizers.adafactor.weight_decay": None,
}
BBH = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
KIM_BBH = code(
    "4.4",
    BBH_COT=tuple(f"bbh_{task}_zero_shot_cot" for task in BBH),
    BBH_DIRECT=tuple(f"bbh_{task}_zero_shot_answer" for task in BBH),
)
KIM_CHAIN = {  # 4.4: `do_sample` at transformers' temperature 1
    "NUM_SAMPLES": 1,
    "TEMPERATURE": 1.0,
    "TOP_P": 0.8,
    "NO_REPEAT_NGRAM": 3,
    "MIN_NEW_TOKENS": 8,
    "MAX_DECODE_LENGTH": 512,
    "ANSWER_MODE": "kim2023",
    "RANDOM_SEED": 42,
}
KIM_SHARED = (
    code("4.1", TASK_FEATURE_LENGTHS={"inputs": 512, "targets": 512})
    | code("4.1", registration__prompting__template="kim2023")
    | code("4.3", SCHEDULE="@optimizers.constant()", WARMUP_STEPS=0, DROPOUT_RATE=0.1)
    | code("4.3", DTYPE="bfloat16", OBJECTIVE="@losses.Objective()", **PLAIN_LOSS)
    | code("4.3", losses__Objective__kl_weight=0.0)
    | code("4.4", **KIM_CHAIN)
    | ours("4.3: a batch is of examples", PACK=False)
)
KIM_FULL = code("4.3", OPTIMIZER="@optimizers.adafactor()", **KIM_ADAFACTOR)
KIM_STAGE1 = (
    KIM_SHARED
    | KIM_FULL
    | code("4.3", EPOCHS=1, MICROBATCHES=64)
    | ours("4.1", MIXTURE_OR_TASK_NAME="cot_collection_mix")
    | KIM_BBH
    | ours("4.4", TEST_TASKS="%BBH_COT")
)
KIM_TESTS = {
    how: KIM_BBH
    | code("4.4", **KIM_CHAIN | ({} if how == "cot" else {"MIN_NEW_TOKENS": 0}))
    | code("4.1", registration__prompting__template="kim2023")
    | ours("4.4", MIXTURE_OR_TASK_NAME=f"%BBH_{how.upper()}")
    for how in ("cot", "direct")
}
KIM_SIZES = {  # 4.3: learning rate, and batch a device x accumulation x GPUs
    "xl": (5e-5, 4 * 64 * 8, "google/flan-t5-xl"),
    "xxl": (1e-4, 1 * 64 * 8, "google/flan-t5-xxl"),
    "t0_3b": (5e-5, 4 * 64 * 8, "bigscience/T0_3B"),
    "t0_11b": (1e-4, 1 * 64 * 8, "bigscience/T0pp"),
}
KIM_LORA = code(
    "4.3",
    LORA_RANK=4,
    LORA_ALPHA=32.0,
    LORA_DROPOUT=0.1,
    lora__Lora__targets=("query", "value"),
    OPTIMIZER="@optimizers.adamw()",
    LEARNING_RATE=3e-3,
) | ours("4.3", optimizers__adamw__clip_norm=None)
_CHOSEN = ("your_data_zero_shot_cot", "your_data_zero_shot_answer")
KIM_STAGE2 = (
    KIM_SHARED
    | KIM_FULL
    | code("4.3", BATCH_SIZE=64)
    | recalled("4.3", TRAIN_QUESTIONS=64)
    | ours("4.3", EPOCHS=20, LEARNING_RATE=5e-5)
    | ours("4.3", INITIAL_RECIPE="recipes/kim2023_stage1_xl.gin")
    | ours("4.3", MIXTURE_OR_TASK_NAME="your_data_zero_shot_cot", TEST_TASKS=_CHOSEN)
)
KIM_ANSWERS = {
    "mednli": {"LABELS": ("entailment", "neutral", "contradiction")},
    "pubmedqa": {"LABELS": ("yes", "no", "maybe")},
    "ledgar": {"ANSWER_KIND": "text"},
    "casehold": {"ANSWER_KIND": "choice"},
}


def _kim_stage1(key: str) -> Table:
    rate, batch, start = KIM_SIZES[key]
    numbers = {"LEARNING_RATE": rate, "BATCH_SIZE": batch, "INITIAL_CHECKPOINT_PATH": start}
    return KIM_STAGE1 | (recalled if key.startswith("t0") else code)("4.3", **numbers)


def _kim_stage2(task: str, how: str) -> Table:
    about = ours("4.3", DATASET=task, **KIM_ANSWERS[task])
    return KIM_STAGE2 | (KIM_LORA if how == "lora" else {}) | about


# All ----------------------------------------------------------------------------------------------

# By recipe: what it binds, beside names of files and folders.
RECIPES: dict[str, Table] = {
    **{f"fu2023_{student}": _fu(student) for student in FU_STUDENTS},
    **{f"fu2023_{student}_match_sample": _fu(student, matches="sample") for student in FU_STUDENTS},
    "fu2023_flan_t5_xl_in_context_only": _fu("flan_t5_xl", IN_CONTEXT),
    "fu2023_flan_t5_xl_zero_shot_only": _fu("flan_t5_xl", ZERO_SHOT),
    **{f"fu2023_evaluate_{name}": table for name, table in FU_TESTS.items()},
    **{
        f"magister2022_t5_{size}": MAGISTER | ours("2.3", INITIAL_CHECKPOINT_PATH=f"t5-{size}")
        for size in ("small", "base", "large", "3b", "11b")
    },
    "magister2022_evaluate": MAGISTER_TEST,
    **{
        f"ho2022_{family}_{size}": _ho(family, size)
        for family in ("t5", "flan_t5")
        for size in ("small", "base", "large")
    },
    "ho2022_ft": HO_FT | code("3.3", INITIAL_CHECKPOINT_PATH="google/flan-t5-base"),
    "ho2022_zs": HO_ZS | code("3.5", CHECKPOINT_PATH="google/flan-t5-base"),
    "ho2022_fs_cot": HO_FS,
    "ho2022_evaluate": HO_TEST,
    **{f"kim2023_stage1_{key}": _kim_stage1(key) for key in KIM_SIZES},
    **{
        f"kim2023_stage2_{task}_{how}": _kim_stage2(task, how)
        for task in KIM_ANSWERS
        for how in ("full", "lora")
    },
    **{f"kim2023_evaluate_bbh_{how}_generate": table for how, table in KIM_TESTS.items()},
}
PARTS = ("fu2023", "magister2022", "ho2022", "kim2023", "kim2023_bbh")
PARTS += ("kim2023_stage2", "kim2023_lora")
"""Files that recipes include."""
