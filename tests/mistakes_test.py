"""Mistakes as users type them: one line that says what to do, exit code 2, and nothing lost.

A row is a command in a folder with some runs, a store and files of several kinds. benchmarks/
mistakes.py runs the same rows as processes of their own and times them: docs/mistakes.md.
"""

import gzip
import json
import logging
import os
import re
import resource
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import gin
import jax
import pytest
from huggingface_hub import constants
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from cot_flax import cli, configuration
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

FIXTURES = Path(__file__).parent / "fixtures"
TRIAGE = Path(__file__).parents[1] / "examples" / "triage"
NOWHERE = "http://127.0.0.1:9"  # nobody listens there: what asks the hub has no network
NO_NETWORK = {
    "HF_ENDPOINT": NOWHERE,
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "no_proxy": "localhost,127.0.0.1",
}
KL = "train --gin_file=experiments/world_cot_kl.gin --gin.TEACHER_STORE=store"
ANSWER = "train --gin_file=experiments/world_answer.gin --gin.MODEL_DIR=runs/new"
NEW = f"{KL} --gin.MODEL_DIR=runs/new"
HUMAN = "train --gin_file=experiments/gsm8k_human_ce.gin --gin.MODEL_DIR=runs/new"
TEST = "evaluate --gin_file=experiments/world_evaluate.gin --gin.EVAL_OUTPUT_DIR=runs/new/test"
OURS = f"{TEST} --gin.CHECKPOINT_PATH=runs/base"
PREPARE = "prepare --out new --task stories_teacher_zero_shot_cot"
ASK = "teach sample questions.jsonl --recipe fu2023 --dataset gsm8k --out new.jsonl"
PLAN = "plan --target v5e-16 --gin_file=experiments/world_cot_kl.gin"


class Mistake(NamedTuple):
    """One row of the table.

    Attributes:
        kind: of mistake.
        command: what stands after `cot-flax`, with shell quotes; `cd FOLDER && ` may come first.
        message: what the line must say, as a regular expression.
        leaves: a folder that stays, because the message names what is in it.
    """

    kind: str
    command: str
    message: str
    leaves: str = ""


MISTAKES = [
    # Quotes, names and values of the command line.
    Mistake("quotes", f"""{KL} --gin.MODEL_DIR="'runs/new" """, r"MODEL_DIR='runs/new .*quote the"),
    Mistake("quotes", f"{NEW} --gin.OPTIMIZER=adamw", r"OPTIMIZER=adamw; .*@optimizers\."),
    Mistake("quotes", f"{NEW} --gin.PACK=ture", r"PACK=ture; expected True or False; set .*=True"),
    Mistake("quotes", f"{NEW} --gin.TRAIN_STEPS=four", r"TRAIN_STEPS=four; expected a whole num"),
    Mistake("macro", f"{NEW} --gin.TRAIN_STEP=1", r"TRAIN_STEP; .*such as TRAIN_STEPS"),
    Mistake("macro", f"{NEW} --gin.learning_rate=1", r"learning_rate; .*such as LEARNING_RATE"),
    Mistake("macro", f"{NEW} TRAIN_STEPS=4", r"write --gin\.TRAIN_STEPS=4"),
    Mistake(
        "macro",
        f"{NEW} --gin.loop.train.step=1",
        r"loop\.train\.step; .*parameter of loop\.train.*total_steps",
    ),
    Mistake("macro", f"{NEW} --gin.OPTIMIZER='@optimizers.sgd()'", r"@optimizers\.sgd\(\)"),
    Mistake("macro", KL, r"no value for MODEL_DIR; expected one; pass --gin\.MODEL_DIR=VALUE"),
    Mistake("verb", "trian --gin_file=experiments/world_base.gin", r"'trian'; .*train"),
    Mistake("verb", "export --chekpoint runs/base --format huggingface --out new", r"--checkpoint"),
    Mistake("verb", "export --checkpoint runs/base --out new", r"--format"),
    Mistake("verb", f"{PREPARE} samples.jsonl.gz --topk 3", r"argument '--topk'; .*--top-k"),
    Mistake("verb", f"{PREPARE} samples.jsonl.gz --top-k five", r"'five'.*--top-k|--top-k.*'five'"),
    Mistake("verb", "train experiments/world_base.gin", r"write --gin_file=experiments/world_base"),
    # Types.
    Mistake("type", f"""{NEW} --gin.BATCH_SIZE="'7'" """, r"BATCH_SIZE = '7'; .*set BATCH_SIZE=7$"),
    Mistake("type", f"{NEW} --gin.BATCH_SIZE=7.5", r"BATCH_SIZE = 7\.5; expected a whole number"),
    Mistake("type", f"""{NEW} --gin.PACK="'false'" """, r"PACK = 'false'; .*set PACK=False$"),
    Mistake(
        "type", f"""{NEW} --gin.TRAIN_STEPS="'four'" """, r"TRAIN_STEPS = 'four'; .*a whole nu"
    ),
    Mistake("type", f"""{NEW} --gin.LEARNING_RATE="'1e-3'" """, r"set LEARNING_RATE=0\.001$"),
    Mistake("type", f"""{KL} --gin.MODEL_DIR="['x']" """, r"MODEL_DIR = \['x'\]; expected a text"),
    Mistake(
        "type",
        f"""{NEW} --gin.MIXTURE_OR_TASK_NAME="{{'stories_cot_mix': '2'}}" """,
        r"MIXTURE_OR_TASK_NAME = \{'stories_cot_mix': '2'\}; expected a text or a list or a dict",
    ),
    Mistake("type", f"""{NEW} --gin.DTYPE="'fp16'" """, r"(?i)DTYPE.*'fp16'; .*'bfloat16'"),
    Mistake("type", f"""{NEW} --gin.REMAT="'ful'" """, r"(?i)REMAT.*'ful'; .*'full'"),
    Mistake("type", f"""{NEW} --gin.OPTIMIZER="'adamw'" """, r"OPTIMIZER = 'adamw'; .*@optimizers"),
    Mistake(
        "type",
        f"{NEW} --gin.TASK_FEATURE_LENGTHS='[96, 72]'",
        r"TASK_FEATURE_LENGTHS = \[96, 72\]; expected a dict",
    ),
    Mistake(
        "type",
        f"""{NEW} --gin.TASK_FEATURE_LENGTHS="{{'inputs': '96'}}" """,
        r"TASK_FEATURE_LENGTHS = .*a dict whose values are each a whole number",
    ),
    Mistake("type", f"""{NEW} --gin.t5.T5Config.emb_dim="'64'" """, r"T5Config\.emb_dim = '64'"),
    Mistake("type", f"""{NEW} --gin.WORLD_SEED="'0'" """, r"WORLD_SEED = '0'; .*set WORLD_SEED=0$"),
    Mistake(
        "type",
        f"{NEW} --gin.registration.prompting.shots=two",
        r"shots=two; expected a whole number",
    ),
    Mistake("type", f"""{NEW} --gin.TAIL="'bukcet'" """, r"TAIL = 'bukcet'; .*set TAIL=bucket$"),
    Mistake("type", f"""{NEW} --gin.MODEL="'t5'" """, r"MODEL = 't5'; .*@t5\.T5Config\(\)"),
    Mistake("type", f"{PREPARE} samples.jsonl.gz --alignment dtw", r"ALIGNMENT = 'dtw'; .*'bytes'"),
    Mistake("type", f"{PREPARE} samples.jsonl.gz --projection x", r"PROJECTION = 'x'; .*'paths'"),
    Mistake("type", f"{ASK} --model m --recipe fu", r"RECIPE = 'fu'; .*'fu2023' or 'magister2022'"),
    Mistake("type", f"""{OURS} --gin.NUM_SAMPLES="'4'" """, r"set NUM_SAMPLES=4$"),
    Mistake("type", f"""{OURS} --gin.BEAM_RULE="'hf'" """, r"(?i)BEAM_RULE.*'hf'; .*'huggingface'"),
    Mistake("type", f"""{OURS} --gin.ANSWER_MODE="'lax'" """, r"(?i)MODE.*'lax'; .*flexible"),
    Mistake(
        "type",
        f"""{PREPARE} samples.jsonl.gz --gin.SIMILARITY="'0.5'" """,
        r"set SIMILARITY=0\.5$",
    ),
    Mistake("type", f"{PREPARE} samples.jsonl.gz --gin.COLUMNS=question", r"COLUMNS.*a dict"),
    Mistake("type", f"{PREPARE} samples.jsonl.gz --rules fu2O23", r"'fu2O23'; .*fu2023"),
    Mistake(
        "type",
        f"""{ASK} --model m --gin.TEACHER_CONCURRENCY="'8'" """,
        r"set TEACHER_CONCURRENCY=8$",
    ),
    Mistake("type", f"{PLAN} --gin.BATCH_SIZE=large", r"BATCH_SIZE=large; expected a whole number"),
    # What is not there.
    Mistake("path", "train --gin_file=experiments/wrold_base.gin", r"experiments/world_base\.gin"),
    Mistake("path", f"{TEST} --gin.CHECKPOINT_PATH=runs/bse", r"no folder runs/bse.*runs/base"),
    Mistake("path", f"{TEST} --gin.CHECKPOINT_PATH=./bse", r"no folder \./bse.*correct the path$"),
    Mistake("path", f"{TEST} --gin.CHECKPOINT_PATH=/no/base", r"no folder /no/base.*correct the p"),
    Mistake("path", f"{TEST} --gin.CHECKPOINT_PATH=~/no/base", r"no folder ~/no/base.*correct the"),
    Mistake("path", f"{TEST} --gin.CHECKPOINT_PATH=a/b/c", r"no folder a/b/c.*correct the path$"),
    Mistake("path", f"{TEST} --gin.CHECKPOINT_PATH=hf/tiny", r"no folder hf/tiny.*correct the pa"),
    Mistake(
        "path", f"{TEST} --gin.CHECKPOINT_PATH=runs/base/checkpoints/7", r"checkpoints/7.*\b1\b"
    ),
    Mistake("path", f"{NEW} --gin.INITIAL_CHECKPOINT_PATH=runs/nothing", r"no folder runs/nothing"),
    Mistake(
        "path",
        "export --checkpoint runs/nothing --format huggingface --out new",
        r"no folder runs/nothing.*runs/base",
    ),
    Mistake("path", f"{PREPARE} sample.jsonl.gz", r"sample\.jsonl\.gz: No such file"),
    Mistake("path", "report runs/nothing --out new.html", r"no folder .*runs/nothing"),
    Mistake(
        "path",
        f"{HUMAN} --gin.T5_VOCABULARY_FILE=world.model --gin.GSM8K_DIRECTORY=gsm8",
        r"gsm8/train\.jsonl: No such file",
    ),
    Mistake(
        "directory",
        f"cd elsewhere && {TEST} --gin.CHECKPOINT_PATH=runs/base",
        r"no folder runs/base.*elsewhere",
    ),
    Mistake(
        "directory",
        f"cd elsewhere && {NEW}",
        r"no readable manifest\.json in .*elsewhere/store.*cot-flax prepare",
    ),
    Mistake(
        "task",
        f"{NEW} --gin.MIXTURE_OR_TASK_NAME=stories_few_shot_chain",
        r"'stories_few_shot_chain'; .*stories_few_shot_cot",
    ),
    Mistake("task", "prepare samples.jsonl.gz --out new --task storys", r"'storys'; .*--task"),
    Mistake(
        "task",
        "prepare samples.jsonl.gz --out new --task gsm8k_teacher_zero_shot_cot",
        r"samples of stories for gsm8k",
    ),
    Mistake(
        "task", f"{NEW} --gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_cot", r"no teacher log-pr"
    ),
    Mistake("task", f"{OURS} --gin.SPLIT=dev", r"split 'dev' of stori"),
    Mistake(
        "scenario",
        "teach scenario triage_cut --model m --out new.jsonl",
        r"exemplars\.jsonl: No such",
    ),
    Mistake("scenario", "teach scenario triag --model m --out new.jsonl", r"triag/instruction\.md"),
    # What is there, and another thing.
    Mistake(
        "vocabulary",
        f"{HUMAN} --gin.GSM8K_DIRECTORY=gsm8k --gin.T5_VOCABULARY_FILE=questions.jsonl",
        r"questions\.jsonl, which holds no SentencePiece model; .*set T5_VOCABULARY_FILE",
    ),
    Mistake(
        "vocabulary",
        "train --gin_file=experiments/world_cot_kl.gin --gin.TEACHER_STORE=other_store "
        "--gin.MODEL_DIR=runs/new",
        r"a store with vocabulary .*other_store; .*cot-flax prepare",
    ),
    Mistake(
        "vocabulary",
        "evaluate --gin_file=experiments/gsm8k_evaluate.gin --gin.CHECKPOINT_PATH=runs/base "
        "--gin.EVAL_OUTPUT_DIR=new --gin.GSM8K_DIRECTORY=gsm8k "
        "--gin.T5_VOCABULARY_FILE=other.model",
        r"a checkpoint with vocabulary .*of gsm8k_zero_shot_cot",
    ),
    Mistake("checkpoint", f"{TEST} --gin.CHECKPOINT_PATH=store", r"no checkpoint at store \("),
    Mistake(
        "checkpoint",
        f"{TEST} --gin.CHECKPOINT_PATH=samples.jsonl.gz",
        r"no checkpoint at samples\.jsonl\.gz \(a file there\)",
    ),
    Mistake(
        "checkpoint",
        f"{NEW} --gin.INITIAL_CHECKPOINT_PATH=hf",
        r"checkpoint of another model|another (model|size)|do not fit|vocab",
    ),
    Mistake(
        "run", f"{ANSWER.replace('runs/new', 'runs/base')}", r"run at runs/base that was begun"
    ),
    Mistake(
        "run",
        f"{PREPARE.replace('new', 'store')} samples.jsonl.gz --similarity 0.5",
        r"another finished store in .*store.*--overwrite",
    ),
    Mistake(
        "run",
        OURS.replace("runs/new/test", "runs/base/test") + " --gin.MAX_EXAMPLES=1 "
        "--gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_cot",
        r"runs/base/test.*--overwrite",
    ),
    Mistake(
        "run",
        "export --checkpoint runs/base --format huggingface --out store",
        r"store, which is not empty; .*another --out",
    ),
    Mistake("mesh", f"{NEW} --gin.MESH_DATA=99", r"data=99 x model=1; .*at most \d"),
    Mistake("mesh", f"{NEW} --gin.MESH_MODEL=0", r"model=0; .*correct MESH_DATA or MESH_MODEL"),
    Mistake(
        "mesh", f"{NEW} --gin.BATCH_SIZE=7 --gin.MICROBATCHES=2", r"BATCH_SIZE 7; .*multiple of"
    ),
    Mistake(
        "mesh", "plan --target v5e-15 --gin_file=experiments/world_cot_kl.gin", r"v5e-15.*v5e-16"
    ),
    # Files that are cut, or of another kind.
    Mistake("cut", f"{PREPARE} cut.jsonl.gz", r"'truncated_file': 1", "new"),
    Mistake(
        "cut",
        f"{HUMAN} --gin.GSM8K_DIRECTORY=gsm8k --gin.T5_VOCABULARY_FILE=cut.model",
        r"cut\.model, which holds no SentencePiece model",
    ),
    Mistake("cut", f"{TEST} --gin.CHECKPOINT_PATH=hf_cut", r"hf_cut.*copy|hf_cut.*download"),
    Mistake(
        "cut", f"{TEST} --gin.CHECKPOINT_PATH=hf_partial", r"hf_partial.*(download|copy|fetch)"
    ),
    Mistake("cut", f"{TEST} --gin.CHECKPOINT_PATH=runs/cut", r"runs/cut.*(copy|complete)"),
    Mistake(
        "cut",
        "train --gin_file=experiments/world_cot_kl.gin --gin.TEACHER_STORE=cut_store "
        "--gin.MODEL_DIR=runs/new",
        r"cut_store/.*SHA-256 .*copy the store again",
    ),
    Mistake("format", f"{PREPARE} table.jsonl", r"table\.jsonl.*CSV"),
    Mistake(
        "format", f"{PREPARE} object.jsonl", r"object\.jsonl.*(JSON Lines|one JSON object a line)"
    ),
    Mistake("format", f"{PREPARE} empty.jsonl", r"empty\.jsonl: an empty file"),
    Mistake(
        "format", f"{PREPARE} half.jsonl", r"1 of 2 records .*'bad_json': 1.*--max-rejected", "new"
    ),
    Mistake("format", "teach import table.jsonl --out new.jsonl", r"table\.jsonl.*CSV"),
    # gin files.
    Mistake("gin", "train --gin_file=syntax.gin --gin.MODEL_DIR=runs/new", r"syntax\.gin.*line 2"),
    Mistake(
        "gin",
        "train --gin_file=type.gin --gin.MODEL_DIR=runs/new",
        r"BATCH_SIZE = 'many' \(type\.gin, line 2\)",
    ),
    Mistake("gin", "train --gin_file=latin.gin --gin.MODEL_DIR=runs/new", r"latin\.gin.*UTF-8"),
    Mistake(
        "gin",
        "train --gin_file=models/t5_1_1_base.gin --gin_file=experiments/world_answer.gin "
        "--gin.MODEL_DIR=runs/new",
        r"name it later: --gin_file=experiments/world_answer\.gin --gin_file=models/t5_1_1_base",
    ),
    Mistake("gin", "train", r"no .*gin.file; .*experiments/"),
    Mistake("gin", "train --gin_file=runs/train.gin --gin.MODEL_DIR=runs/new", r"MODEL\b.*models/"),
    # The machine.
    Mistake(
        "memory", f"{NEW} --gin.t5.T5Config.mlp_dim=40000000000", r"no memory .*BATCH_SIZE.*plan"
    ),
    Mistake(
        "memory",
        f"{OURS} --gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_cot "
        "--gin.MAX_DECODE_LENGTH=2000000000",
        r"no memory .*DECODE_BATCH_SIZE",
    ),
    Mistake("network", f"{TEST} --gin.CHECKPOINT_PATH=google/flan-t5-smal", rf"{NOWHERE}.*cache"),
    Mistake("network", f"{NEW} --gin.INITIAL_CHECKPOINT_PATH=flan-t5-small", rf"{NOWHERE}.*cache"),
    Mistake(
        "network",
        f"{HUMAN} --gin.T5_VOCABULARY_FILE=world.model",
        r"no GSM8K from TFDS .*GSM8K_DIRECTORY",
    ),
    Mistake(
        "network",
        f"{HUMAN} --gin.GSM8K_DIRECTORY=gsm8k",
        r"no T5 vocabulary at gs://.*T5_VOCABULARY",
    ),
    Mistake(
        "network",
        f"teach scenario triage --model m --base-url {NOWHERE}/v1 --out new.jsonl",
        rf"{NOWHERE}/v1",
    ),
    Mistake(
        "folder",
        f"{KL} --gin.MODEL_DIR=/dev/null/run",
        r"/dev/null/run \(Not a directory\).*write to",
    ),
    Mistake("folder", f"{KL} --gin.MODEL_DIR=/proc/run", r"/proc/run .*write to"),
    Mistake(
        "folder", f"{PREPARE.replace('new', '/proc/new')} samples.jsonl.gz", r"/proc/new.*write"
    ),
    Mistake(
        "folder",
        OURS.replace("runs/new/test", "/proc/test") + " --gin.MAX_EXAMPLES=1",
        r"/proc/test .*write to",
    ),
    Mistake(
        "folder",
        "export --checkpoint runs/base --format huggingface --out /proc/new",
        r"/proc/new.*write",
    ),
    Mistake("folder", "report runs/base --out /proc/new.html", r"/proc.*write"),
    Mistake("folder", "teach stories --stories 4 --out /proc/new.jsonl", r"/proc.*write"),
    Mistake(
        "space",
        "ulimit 8 && teach stories --stories 4000 --out new.jsonl",
        r"new\.jsonl \(File too large\)",
    ),
    Mistake("space", f"ulimit 8 && {PREPARE} samples.jsonl.gz", r"File too large.*room", "new"),
    Mistake("space", f"ulimit 8 && {NEW} --gin.PACK=False", r"runs/new/.*File too large"),
]


def make_folder(folder: Path) -> None:
    """Fills the folder in which the commands run."""
    os.chdir(folder)
    for name in ("runs", "elsewhere", "gsm8k", "hf_partial"):
        (folder / name).mkdir()
    assert call("teach stories --out samples.jsonl.gz --stories 8 --samples 2") == 0
    assert call(f"{PREPARE.replace('new', 'store')} samples.jsonl.gz --workers 1") == 0
    quick = "--gin.BATCH_SIZE=2 --gin.PACK=False --gin.EVALUATORS=() --gin.TRAIN_STEPS=1"
    quick += " --gin.WARMUP_STEPS=0"
    shape = "--gin.t5.T5Config.num_encoder_layers=1 --gin.t5.T5Config.num_decoder_layers=1"
    assert call(f"{KL} --gin.MODEL_DIR=runs/base {quick} {shape}") == 0
    results = "--gin.MAX_EXAMPLES=2 --gin.MAX_DECODE_LENGTH=2 --gin.DECODE_BATCH_SIZE=2"
    task = "--gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_answer"
    test = OURS.replace("runs/new/test", "runs/base/test")
    assert call(f"{test} {results} {task}") == 0
    for original, copy in (
        ("store", "other_store"),
        ("store", "cut_store"),
        ("runs/base", "runs/cut"),
    ):
        shutil.copytree(original, copy)
    manifest = Path("other_store/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"vocabulary": "0" * 16}))
    cut(next(Path("cut_store").glob("*.tfrecord-*")))
    for file in Path("runs/cut/checkpoints").rglob("d/*"):  # which holds what is left to chance
        cut(file)
    shutil.copytree(FIXTURES / "hf_tiny_v1_1", "hf")
    shutil.copytree("hf", "hf_cut")
    cut(Path("hf_cut/model.safetensors"))
    shutil.copy("hf/config.json", "hf_partial")
    shutil.copytree(TRIAGE, "triage")
    shutil.copytree(TRIAGE, "triage_cut")
    Path("triage_cut/exemplars.jsonl").unlink()
    shutil.copy(VOCABULARY_PATH, "world.model")
    Path("cut.model").write_bytes(Path("world.model").read_bytes()[:-500])
    other = ModelProto.FromString(Path("world.model").read_bytes())
    other.pieces[-1].piece += "x"
    Path("other.model").write_bytes(other.SerializeToString())
    question = {"question": "One and one?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"}
    for file in ("questions.jsonl", "gsm8k/train.jsonl", "gsm8k/test.jsonl"):
        rows = ({**question, "question": f"{i} in {file}?"} for i in range(510))  # 500 are held out
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("cut.jsonl.gz").write_bytes(Path("samples.jsonl.gz").read_bytes()[:-300])
    with gzip.open("samples.jsonl.gz", "rt") as samples:
        first, second, *_ = samples
    Path("half.jsonl").write_text(first + second[:100] + "\n")
    Path("object.jsonl").write_text(json.dumps({"version": 1, "data": [question]}, indent=1))
    Path("table.jsonl").write_text("question,text,gold_answer\nOne and one?,It is 2.,2\n")
    Path("empty.jsonl").touch()
    Path("syntax.gin").write_text("include 'experiments/world_answer.gin'\nBATCH_SIZE = = 4\n")
    Path("type.gin").write_text("include 'experiments/world_answer.gin'\nBATCH_SIZE = 'many'\n")
    Path("latin.gin").write_bytes("# größer\nBATCH_SIZE = 4\n".encode("latin-1"))


def cut(path: Path) -> None:
    """Leaves the first half of a file, as a download that was interrupted."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def call(command: str) -> int:
    """Runs the entry point in this process, as a shell would; returns the exit code."""
    *before, command = command.split(" && ")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cot-flax", *shlex.split(command)])
        for name, value in map(shlex.split, before):
            if name == "cd":
                patch.chdir(value)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(value) * 1024, limits[1]))
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return 0


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: bytes of files, None of folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the commands set is set for good, as in their own process; here it is undone."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    filters, level = list(logging.getLogger().filters), logging.getLogger("absl").level
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COT_FLAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, value in NO_NETWORK.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", NOWHERE)
        place = tmp_path_factory.mktemp("work")
        patch.chdir(place)
        make_folder(place)
        yield place
    for name, value in (before | {"jax_disable_most_optimizations": False}).items():
        jax.config.update(name, value)
    logging.getLogger().filters[:] = filters
    logging.getLogger("absl").setLevel(level)
    gin.clear_config()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row.kind}: {row.command}")
def test_a_mistake_is_one_line_and_loses_nothing(folder, capfd, mistake):
    before = tree(folder)
    code = call(mistake.command)
    printed = capfd.readouterr().err
    after = tree(folder)
    added = after.keys() - before.keys()
    new = {name for name in added if os.path.dirname(name) not in added}
    for name in new:  # so that the next row finds what this one found
        shutil.rmtree(folder / name) if after[name] is None else (folder / name).unlink()
    line = printed.splitlines()[-1]
    assert line.startswith("cot-flax: got ") and re.search(mistake.message, line), line
    assert code == 2 and "Traceback" not in printed
    assert {name: after.get(name) for name in before} == before
    assert new == ({mistake.leaves} if mistake.leaves else set())


def test_windows_line_ends_a_mark_and_spaces_are_no_mistakes(folder, tmp_path, monkeypatch):
    """What other editors and shells write is understood: the same store, by the same words."""
    with gzip.open(folder / "samples.jsonl.gz", "rb") as samples:
        lines = samples.read().splitlines()
    monkeypatch.chdir(tmp_path)
    Path("of ours").mkdir()
    Path("of ours/a,b.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b""]))
    Path("mine.gin").write_bytes("\ufeffSAMPLES_FILE = 'of ours/a,b.jsonl'\r\n".encode())
    command = "prepare --gin_file=mine.gin --gin.STORE_TASK=stories_teacher_zero_shot_cot"
    assert call(f"{command} --gin.TEACHER_STORE='of ours/store: 1'") == 0
    stores = folder / "store", tmp_path / "of ours/store: 1"
    read, other = (json.loads((store / "manifest.json").read_text()) for store in stores)
    assert other["files"] == read["files"]


@pytest.mark.parametrize(
    "command",
    [
        f"{PLAN} --gin.MODEL_DIR=~/runs/x --gin.INITIAL_CHECKPOINT_PATH=gs://bucket/a:b",
        f"{ASK} --gin.TEACHER_MODEL=org/model:7b --gin.TEACHER_URL=http://localhost:8000/v1",
        "prepare ../a.jsonl --gin.TEACHER_STORE=../b --gin.STORE_TASK=stories_cot_mix",
    ],
)
def test_texts_without_quotes_are_understood_by_every_verb(folder, command, monkeypatch):
    """As far as the imports: what is bound is checked before."""

    class Checked(Exception):
        pass

    def parse(*arguments, **settings):
        real(*arguments, **(settings | {"before_imports": stop}))

    def stop():
        raise Checked

    real = configuration.parse
    monkeypatch.setattr(configuration, "parse", lambda *a, **k: parse(*a[:4], **k))
    monkeypatch.setattr(sys, "argv", ["cot-flax", *shlex.split(command)])
    with pytest.raises(Checked):
        cli.app(standalone_mode=False)
