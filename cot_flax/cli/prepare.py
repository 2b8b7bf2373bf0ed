"""`cot-flax prepare`: from samples to a store."""

import typer

from cot_flax.cli.common import Short, bound

_KEEP = "What is kept"
_ALIGN = "How it is aligned"
_RUN = "How it runs"


def _columns(typed: str) -> dict[str, str]:
    from cot_flax.chains.readers import columns_of

    return columns_of(typed)


@bound(
    "runs/prepare.gin",
    libraries=True,
    # Files of experiments, which the user's own may include, want more.
    needed=("SAMPLES_FILE", "TEACHER_STORE", "STORE_TASK"),
    samples=Short(
        "SAMPLES_FILE",
        tuple,
        "Samples files, FLAN's .tsv, the CoT Collection's .json, or chains of your own (JSON "
        "Lines, JSON, CSV, TSV, Parquet, Arrow): files, patterns, folders, names on the hub.",
        argument=True,
    ),
    columns=Short(
        "COLUMNS",
        str,
        "How chains of your own call their fields: question=ticket,text=reasoning,"
        "gold_answer=label. Usual names and chats need none.",
        value=_columns,
    ),
    out=Short(
        "TEACHER_STORE",
        str,
        "Where to write the store; one in a bucket grows in COT_FLAX_CACHE/buckets first.",
    ),
    task=Short("STORE_TASK", str, "A task of the student: it has the vocabulary."),
    scenario=Short("SCENARIO", str, "The scenario's folder, where --task is one of a scenario."),
    rules=Short(
        "FILTER_RULES",
        str,
        "default, fu2023, ho2022, kim2023 or none; by default, file by file, `default` for samples "
        "files and `none` for the others, whose answers are given.",
        _KEEP,
    ),
    answer_kind=Short(
        "ANSWER_KIND",
        str,
        "number, choice, yes_no or text, by default the task's; gold: what each gold answer looks "
        "like.",
        _KEEP,
    ),
    held_out_splits=Short(
        "HELD_OUT_SPLITS",
        str,
        "Drop chains on questions of these splits, by default validation,test; none keeps all.",
        _KEEP,
        value=lambda typed: () if typed == "none" else tuple(typed.split(",")),
    ),
    chain=Short(
        "CHAIN",
        str,
        "Of a teacher that thinks apart: text (default), thought (closed with the text's answer) "
        "or both.",
        _KEEP,
    ),
    max_thought_tokens=Short(
        "MAX_THOUGHT_TOKENS",
        int,
        "Of a thought only the first sentences, up to so many tokens of the student.",
        _KEEP,
    ),
    require_logprobs=Short("REQUIRE_LOGPROBS", bool, "Drop chains without, as KL wants.", _KEEP),
    majority=Short(
        "MAJORITY",
        bool,
        "Of a question without a gold answer keep the chains of the answer that most of its "
        "samples give.",
        _KEEP,
    ),
    consistent=Short("CONSISTENT", bool, "Drop chains with a wrong equation.", _KEEP),
    similarity=Short(
        "SIMILARITY",
        float,
        "Drop chains this similar to another of the question (Jaccard index of word 3-grams); 1, "
        "the default, drops equal wording only, 0 nothing.",
        _KEEP,
        value=lambda typed: typed or None,
    ),
    per_question=Short("PER_QUESTION", int, "Chains a question, at most.", _KEEP),
    balance=Short("BALANCE", int, "Chains of a question with the same equations, at most.", _KEEP),
    max_target_tokens=Short("MAX_TARGET_TOKENS", int, "Drop longer chains.", _KEEP),
    max_question_tokens=Short("MAX_QUESTION_TOKENS", int, "Drop longer questions.", _KEEP),
    max_unknown=Short(
        "MAX_UNKNOWN",
        float,
        "Drop chains of which the vocabulary lacks more than this share of the characters, by "
        "default 0.05.",
        _KEEP,
    ),
    top_k=Short("TEACHER_TOP_K", int, "Teacher entries a position, by default 5.", _ALIGN),
    alignment=Short(
        "ALIGNMENT", str, "bytes (default), or fu2023: paper [1]'s dynamic program.", _ALIGN
    ),
    projection=Short(
        "PROJECTION",
        str,
        "paths (default), or fu2023: the rule of paper [1], which keeps fewer positions soft.",
        _ALIGN,
    ),
    workers=Short("PREPARE_WORKERS", int, "Processes; by default one a core.", _RUN),
    max_rejected=Short(
        "MAX_REJECTED", float, "Share of unreadable records to go on with, by default 0.05.", _RUN
    ),
    max_unknown_chains=Short(
        "MAX_UNKNOWN_CHAINS",
        float,
        "Share of chains with characters that the vocabulary lacks to go on with, by default 0.1.",
        _RUN,
    ),
    max_nats=Short(
        "MAX_NATS",
        float,
        "Nats a token of one teacher and recipe, on average, to go on with, by default 6.",
        _RUN,
    ),
    min_likeliest=Short(
        "MIN_LIKELIEST",
        float,
        "Share of such tokens that are the likeliest at their place, by default 0.15.",
        _RUN,
    ),
    overwrite=Short("OVERWRITE", bool, "Replace a finished store of something else.", _RUN),
    runner=Short(
        "BEAM_RUNNER",
        str,
        "Run on Apache Beam: DirectRunner, DataflowRunner, FlinkRunner, ... Beam's own flags go "
        "with it as --NAME=VALUE.",
        _RUN,
        flags="BEAM_FLAGS",
    ),
)
def prepare():
    """Keep the right chains, align the teacher's tokens with the student's, and store both.

    Example: cot-flax prepare samples.jsonl --out store --task stories_teacher_zero_shot_cot
    """
    from cot_flax import configuration
    from cot_flax.files import path_at
    from cot_flax.reports import preparation
    from cot_flax.store import layout, make

    typer.echo(configuration.call(make.store))
    out = configuration.macro("TEACHER_STORE")
    preparation.write(out, layout.read_manifest(out))
    typer.echo(f"store in {out}; see {path_at(out) / preparation.HTML}")
