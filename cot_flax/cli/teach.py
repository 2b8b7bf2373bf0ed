"""`cot-flax teach`: samples files, from a teacher or from somebody's files."""

import contextlib
import itertools
import json
import operator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cot_flax.cli.common import GIN_FLAGS, Out, Short, bound
from cot_flax.errors import UserError


def _json_object(typed: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(record := json.loads(typed), dict):
            return record
    raise UserError(f"--extra-body {typed!r}", "a JSON object", "write it like '{\"name\": 1}'")


class _SampleByDefault(TyperGroup):
    """Gin flags without a word before them are those of `sample`."""

    def parse_args(self, context, args):
        flags_alone = args and args[0].startswith("--gin")
        return super().parse_args(context, ["sample", *args] if flags_alone else args)


app = typer.Typer(
    cls=_SampleByDefault,
    help="Make a samples file: one teacher chain a line. Gin flags alone: teach sample.",
    no_args_is_help=True,
)

_WHO = "The teacher"
_HOW = "What it is asked for"
_RUN = "How it runs"

OUT = Short(
    "SAMPLES_FILE",
    str,
    "Where to write. Answers stand in its folder's teacher.journal.",
)
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print prompts, requests and cost; ask nothing.", rich_help_panel=_RUN
    ),
]
TEACHER = {
    "model": Short(
        "TEACHER_MODEL", str, "A model of an OpenAI-compatible server, by its name.", _WHO
    ),
    "base_url": Short(
        "TEACHER_URL", str, "The server, such as http://localhost:8000/v1; else OpenAI's.", _WHO
    ),
    "key_variable": Short(
        "TEACHER_KEY_VARIABLE",
        str,
        "The environment variable that holds the server's key, by default OPENAI_API_KEY.",
        _WHO,
    ),
    "checkpoint": Short(
        "TEACHER_CHECKPOINT", str, "Instead: a T5, of cot-flax, Hugging Face or T5X.", _WHO
    ),
    "tokenizer": Short(
        "TEACHER_TOKENIZER",
        str,
        "The SentencePiece model of --checkpoint, where none lies beside it.",
        _WHO,
    ),
    "huggingface": Short(
        "TEACHER_HUGGINGFACE",
        str,
        "Instead: a causal LM's folder or hub name (extra `huggingface`).",
        _WHO,
    ),
    "gguf_file": Short("TEACHER_GGUF_FILE", str, "A GGUF file of --huggingface.", _WHO),
    "journal": Short(
        "TEACHER_JOURNAL",
        str,
        "The file of answers, from which every samples file is made; by default teacher.journal in "
        "the folder of --out (of a bucket in COT_FLAX_CACHE/buckets).",
        _RUN,
    ),
    "concurrency": Short(
        "TEACHER_CONCURRENCY", int, "Requests in flight, at most; by default 16.", _RUN
    ),
    "timeout": Short(
        "TEACHER_TIMEOUT", float, "Seconds to wait for an answer, by default 300.", _RUN
    ),
    "rpm": Short("TEACHER_RPM", float, "Requests a minute, at most.", _RUN),
    "tpm": Short("TEACHER_TPM", float, "Tokens a minute, at most, both ways.", _RUN),
    "attempts": Short("TEACHER_ATTEMPTS", int, "Of each request, at most; by default 8.", _RUN),
    "header": Short(
        "TEACHER_HEADERS",
        tuple,
        "'NAME: VALUE' to send with every request, a $VARIABLE is filled in; may be repeated.",
        _WHO,
    ),
    "no_probe": Short(
        "TEACHER_PROBE",
        bool,
        "Ask at once, without finding out first what the server does.",
        _RUN,
        value=operator.not_,
    ),
    "price_in": Short("TEACHER_PRICE_IN", float, "$ per million prompt tokens.", _RUN),
    "price_out": Short("TEACHER_PRICE_OUT", float, "$ per million written tokens.", _RUN),
    "max_cost": Short("TEACHER_MAX_COST", float, "$ that this run may spend; wants prices.", _RUN),
}
BATCH = {
    "batch_file": Short(
        "TEACHER_BATCH_FILE",
        str,
        "Write the requests there for OpenAI's batch API, at half the price, and ask nothing.",
        _RUN,
    ),
    "batch_results": Short(
        "TEACHER_BATCH_RESULTS", str, "A batch's results, to take into the journal first.", _RUN
    ),
}
TOP_LOGPROBS = Short(
    "TEACH_TOP_LOGPROBS", int, "Likeliest tokens a position to ask for; 0 asks for none.", _HOW
)
STOP = Short(
    "TEACH_STOP",
    tuple,
    "A string that ends a chain; may be repeated. A written \\n is a newline.",
    _HOW,
    value=lambda typed: tuple(string.replace("\\n", "\n") for string in typed),
)
NUMBERS = {
    "samples": Short("TEACH_SAMPLES", int, "Chains a question.", _HOW),
    "temperature": Short("TEACH_TEMPERATURE", float, "0 is greedy.", _HOW),
    "max_tokens": Short("TEACH_MAX_TOKENS", int, "Tokens of a chain, at most.", _HOW),
    "top_p": Short("TEACH_TOP_P", float, "Nucleus sampling; 1 is off.", _HOW),
    "presence_penalty": Short("TEACH_PRESENCE_PENALTY", float, "As in OpenAI's API.", _HOW),
    "frequency_penalty": Short("TEACH_FREQUENCY_PENALTY", float, "As in OpenAI's API.", _HOW),
    "top_k": Short("TEACH_TOP_K", int, "Draw from so many of the likeliest; 0 is off.", _HOW),
    "min_p": Short(
        "TEACH_MIN_P", float, "Draw from tokens above this share of the likeliest; 0 is off.", _HOW
    ),
    "repetition_penalty": Short("TEACH_REPETITION_PENALTY", float, "1 is off.", _HOW),
    "seed": Short("TEACH_SEED", int, "For a server that can be seeded.", _HOW),
    "extra_body": Short(
        "TEACH_EXTRA_BODY",
        str,
        "More fields of a request, a JSON object such as "
        '\'{"chat_template_kwargs": {"enable_thinking": false}}\'.',
        _HOW,
        value=_json_object,
    ),
    "stop": STOP,
    "per_request": Short(
        "TEACH_PER_REQUEST", int, "Chains that one request may ask for, at most.", _HOW
    ),
    "top_logprobs": TOP_LOGPROBS,
    "chat": Short("TEACH_CHAT", bool, "Use the chat API, not completions.", _HOW),
}


@app.command("sample", context_settings=GIN_FLAGS)
@bound(
    "runs/teach.gin",
    questions=Short(
        "QUESTIONS_FILE",
        str,
        "Questions: GSM8K's, PAL's or {question, answer} JSON Lines.",
        argument=True,
    ),
    out=OUT,
    recipe=Short("RECIPE", str, "fu2023, magister2022, ho2022 or kim2023."),
    dataset=Short("DATASET", str, "The data set's name."),
    split=Short("DATASET_SPLIT", str, "Its split, by default train."),
    limit=Short("MAX_QUESTIONS", int, "Only the first questions."),
    exemplars=Short(
        "EXEMPLARS_FILE",
        str,
        "Worked questions to show, or a prompt (.txt), all of it; else the recipe chooses among "
        "QUESTIONS.",
    ),
    held_out=Short(
        "HELD_OUT_FILES",
        tuple,
        "A file of questions neither to ask nor to show; may be repeated.",
    ),
    shots=Short("TEACH_SHOTS", int, "How many to show.", _HOW),
    **NUMBERS,
    **TEACHER,
    **BATCH,
)
def sample(dry_run: DryRun = False):
    """Ask a teacher for chains, as one of the four papers did.

    Example: cot-flax teach sample gsm8k/train.jsonl --recipe fu2023 --dataset gsm8k
    --model MODEL --base-url http://localhost:8000/v1 --out samples.jsonl --dry-run
    """
    from cot_flax import configuration
    from cot_flax.teacher import teach

    # A recipe's file holds both, and may name a scenario for its tasks alone.
    of_scenario = configuration.macro("RECIPE", None) is None
    asked = teach.scenario if of_scenario else teach.sample
    typer.echo(configuration.call(asked, dry_run=dry_run))


@app.command("scenario", context_settings=GIN_FLAGS)
@bound(
    "runs/teach_scenario.gin",
    folder=Short(
        "SCENARIO",
        str,
        "A folder with instruction.md, exemplars.jsonl, inputs.jsonl.",
        argument=True,
    ),
    out=OUT,
    **NUMBERS,
    **TEACHER,
    **BATCH,
)
def scenario(dry_run: DryRun = False):
    """Ask a teacher to reason as your own worked exemplars do.

    Example: cot-flax teach scenario examples/triage --model MODEL
    --base-url http://localhost:8000/v1 --out triage.jsonl
    """
    from cot_flax import configuration
    from cot_flax.teacher import teach

    typer.echo(configuration.call(teach.scenario, dry_run=dry_run))


@app.command("rescore", context_settings=GIN_FLAGS)
@bound(
    "runs/rescore.gin",
    samples=Short("UNSCORED_FILE", str, "A samples file.", argument=True),
    out=OUT,
    prompt=Short("RESCORE_PROMPT", str, "What stands before a text; {question} is replaced.", _HOW),
    closing=Short(
        "RESCORE_CLOSING",
        str,
        "Closes a text without an answer; by default 'The answer is {answer}'.",
        _HOW,
    ),
    top_logprobs=TOP_LOGPROBS,
    **TEACHER,
)
def rescore(dry_run: DryRun = False):
    """Give chains that somebody wrote a teacher's log-probabilities.

    Example: cot-flax teach rescore human.jsonl --model MODEL
    --base-url http://localhost:8000/v1 --out scored.jsonl
    """
    from cot_flax import configuration
    from cot_flax.teacher import teach

    typer.echo(configuration.call(teach.rescore, dry_run=dry_run))


_OF_RUNS = ("price_in", "price_out", "max_cost", "concurrency", "no_probe")


@app.command("probe", context_settings=GIN_FLAGS)
@bound(
    "runs/probe.gin",
    out=Short(
        "SAMPLES_FILE", str, "A samples file, beside whose journal the findings are kept for it."
    ),
    chat=NUMBERS["chat"],
    **{name: short for name, short in TEACHER.items() if name not in _OF_RUNS},
)
def probe():
    """Say what a server and its model do, by at most 20 small requests in 30 seconds.

    Example: cot-flax teach probe --model MODEL --base-url http://localhost:8000/v1
    """
    from cot_flax import configuration
    from cot_flax.teacher import teach

    typer.echo(configuration.call(teach.probe))


@app.command("import")
def import_given(
    files: Annotated[
        list[str],
        typer.Argument(
            help="FLAN's .tsv, the CoT Collection's .json, or chains of your own (JSON Lines, "
            "JSON, CSV, TSV, Parquet, Arrow): files, patterns, folders, names on the hub."
        ),
    ],
    out: Out,
    columns: Annotated[
        str | None,
        typer.Option(help="Their fields: question=ticket,text=reasoning,gold_answer=label."),
    ] = None,
):
    """Turn given chains into a samples file, to rescore them for instance.

    Example: cot-flax teach import gsm8k_train.tsv --out human.jsonl.gz
    """
    from cot_flax.chains.file_names import files_of
    from cot_flax.chains.readers import columns_of, parsed
    from cot_flax.chains.samples import write_samples

    named, count, thoughts = columns_of(columns) if columns else None, 0, 0

    def counted():
        nonlocal count, thoughts
        found = (parsed(file, named) for file in files_of(files))
        for sample in itertools.chain.from_iterable(found):
            count, thoughts = count + 1, thoughts + bool(sample.thought)
            yield sample

    write_samples(out, counted())
    apart = f", {thoughts:,} of them with a thought apart (prepare --chain)" if thoughts else ""
    typer.echo(f"{count:,} samples in {out}{apart}")


@app.command("stories")
def teach_stories(
    out: Out,
    stories: Annotated[int, typer.Option(help="Training stories.")] = 6000,
    samples: Annotated[int, typer.Option(help="Chains a story.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the stories and of the teacher.")] = 0,
):
    """Let the embedded world's teacher write.

    Example: cot-flax teach stories --out runs/samples.jsonl.gz
    """
    from cot_flax.chains.samples import write_samples
    from cot_flax.lab.world.stories import make_stories
    from cot_flax.lab.world.teacher import make_samples

    training = make_stories(stories, split="train", seed=seed)
    write_samples(out, make_samples(training, samples=samples, seed=seed))
    typer.echo(f"{stories * samples:,} samples in {out}")


@app.command("import-codex")
def teach_import_codex(
    dump: Annotated[str, typer.Argument(help="JSON Lines of paper [1]'s Codex outputs.")], out: Out
):
    """Turn paper [1]'s Codex dump into a samples file.

    Example: cot-flax teach import-codex codex_top5.jsonl --out samples.jsonl
    """
    from cot_flax.chains.codex import read_codex_dump
    from cot_flax.chains.samples import write_samples

    samples = list(read_codex_dump(dump))
    write_samples(out, samples)
    typer.echo(f"{len(samples):,} samples in {out}")


@app.command("merge")
def merge(files: Annotated[list[str], typer.Argument(help="Samples files.")], out: Out):
    """Merge samples files, so that all chains of a question stand together.

    Example: cot-flax teach merge monday.jsonl tuesday.jsonl.gz --out samples.jsonl.gz
    """
    from cot_flax.chains.samples import merge_samples

    typer.echo(f"{merge_samples(files, out):,} samples in {out}")
