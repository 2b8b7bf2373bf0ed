"""`cot-flax teach`: samples files, from a teacher or from somebody's files."""

from typing import Annotated

import typer

from cot_flax.cli import teachers
from cot_flax.cli.common import Out
from cot_flax.cli.teachers import Asking, asks_a_teacher

app = typer.Typer(help="Make a samples file: one teacher chain a line.", no_args_is_help=True)


Chat = Annotated[bool, typer.Option("--chat", help="Use the chat API, not completions.")]
Samples = Annotated[int | None, typer.Option(help="Chains a question.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens of a chain, at most.")]
TopLogprobs = Annotated[
    int | None, typer.Option(help="Likeliest tokens a position to ask for; 0 asks for none.")
]


@app.command("sample")
@asks_a_teacher
def sample(
    asking: Asking,
    questions: Annotated[
        str, typer.Argument(help="Questions: GSM8K's, PAL's or {question, answer} JSON Lines.")
    ],
    out: Out,
    recipe: Annotated[str, typer.Option(help="fu2023, magister2022, ho2022 or kim2023.")],
    dataset: Annotated[str, typer.Option(help="The data set's name.")],
    split: Annotated[str, typer.Option(help="Its split.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Only the first questions.")] = None,
    exemplars: Annotated[
        str | None,
        typer.Option(help="Worked questions to show; else the recipe chooses among QUESTIONS."),
    ] = None,
    shots: Annotated[int | None, typer.Option(help="How many to show.")] = None,
    samples: Samples = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    top_logprobs: TopLogprobs = None,
    chat: Chat = False,
):
    """Ask a teacher for chains, as one of the four papers did.

    Example: cot-flax teach sample gsm8k/train.jsonl --recipe fu2023 --dataset gsm8k
    --model MODEL --base-url http://localhost:8000/v1 --out samples.jsonl --dry-run
    """
    from cot_flax.teacher.questions import read_questions
    from cot_flax.teacher.recipes import make_recipe

    asked = list(read_questions(questions, dataset=dataset, split=split))
    shown = list(read_questions(exemplars, dataset=dataset, split="exemplars")) if exemplars else []
    numbers = _given(samples, temperature, max_tokens, top_logprobs, shots)
    chosen = make_recipe(recipe, exemplars=shown, pool=asked, chat=chat, **numbers)
    teachers.run(asking, asked[:limit], chosen, out)


@app.command("scenario")
@asks_a_teacher
def scenario(
    asking: Asking,
    folder: Annotated[
        str, typer.Argument(help="A folder with instruction.md, exemplars.jsonl, inputs.jsonl.")
    ],
    out: Out,
    samples: Samples = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    top_logprobs: TopLogprobs = 5,
    chat: Chat = False,
):
    """Ask a teacher to reason as your own worked exemplars do.

    Example: cot-flax teach scenario examples/triage --model MODEL
    --base-url http://localhost:8000/v1 --out triage.jsonl
    """
    from cot_flax.teacher.scenario import read_scenario, scenario_recipe

    read = read_scenario(folder)
    numbers = _given(samples, temperature, max_tokens, top_logprobs)
    teachers.run(asking, read.inputs, scenario_recipe(read, chat=chat, **numbers), out)


@app.command("rescore")
@asks_a_teacher
def rescore(
    asking: Asking,
    samples: Annotated[str, typer.Argument(help="A samples file.")],
    out: Out,
    prompt: Annotated[
        str, typer.Option(help="What stands before a text; {question} is replaced.")
    ] = "Q: {question}\nLet's think step by step\n",
    top_logprobs: Annotated[int, typer.Option(help="Likeliest tokens a position.")] = 5,
):
    """Give chains that somebody wrote a teacher's log-probabilities.

    Example: cot-flax teach rescore human.jsonl --model MODEL
    --base-url http://localhost:8000/v1 --out scored.jsonl
    """
    from cot_flax.chains.samples import read_samples
    from cot_flax.teacher.rescoring import rescore as give_scores

    template = prompt.replace("\\n", "\n")

    def prompt_of(question):
        return template.replace("{question}", question)

    if asking.dry_run:
        first, *others = read_samples(samples)
        typer.echo(f"{prompt_of(first.question)}{first.text}\n{'-' * 40}")
        typer.echo(f"{1 + len(others):,} texts to score")
        return
    totals = give_scores(
        samples,
        out,
        asking.open(),
        prompt_of,
        top_logprobs=top_logprobs,
        concurrency=asking.concurrency,
        prices=asking.prices,
    )
    typer.echo(teachers.done(totals, out))


@app.command("import")
def import_given(
    files: Annotated[list[str], typer.Argument(help="FLAN's .tsv or the CoT Collection's .json.")],
    out: Out,
):
    """Turn given rationales into a samples file, to rescore them for instance.

    Example: cot-flax teach import gsm8k_train.tsv --out human.jsonl.gz
    """
    from cot_flax.chains.readers import parsed
    from cot_flax.chains.samples import write_samples

    write_samples(out, (sample for file in files for sample in parsed(file)))
    typer.echo(f"samples in {out}")


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
    from cot_flax.chains.readers import read_codex_dump
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


def _given(samples, temperature, max_tokens, top_logprobs, shots=None) -> dict:
    """The numbers that the user set; a recipe has its own for the others."""
    numbers = {
        "samples": samples,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "shots": shots,
    }
    given = {name: value for name, value in numbers.items() if value is not None}
    if top_logprobs is not None:
        given["top_logprobs"] = top_logprobs or None
    return given
