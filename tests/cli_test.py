"""The commands as a user types them: one whole run on a handful of stories, and mistakes."""

import dataclasses
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from unittest.mock import ANY

import gin
import jax
import pytest
import typer.testing

import cot_flax
from cot_flax import cli, configuration, run_folder
from cot_flax.chains.samples import read_samples, write_samples
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.text.templates import TEMPLATES
from cot_flax.text.wording import ENGLISH
from cot_flax.weights.opening import open_source

KL = "--gin_file=experiments/world_cot_kl.gin"
QUICK = ["--gin.BATCH_SIZE=2", "--gin.PACK=False", "--gin.WARMUP_STEPS=0", "--gin.EVALUATORS=()"]
QUICK += [f"--gin.t5.T5Config.num_{side}_layers=1" for side in ("encoder", "decoder")]


@pytest.fixture(scope="module", autouse=True)
def _leave_the_process_as_found(tmp_path_factory):
    """What the commands set is set for good, as in their own process."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    filters, level = list(logging.getLogger().filters), logging.getLogger("absl").level
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COT_FLAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    for name, value in (before | {"jax_disable_most_optimizations": False}).items():
        jax.config.update(name, value)
    logging.getLogger().filters[:] = filters
    logging.getLogger("absl").setLevel(level)
    gin.clear_config()


def call(*arguments):
    """Runs the entry point; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cot-flax", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


def flags(**macros):
    return [f"--gin.{name}={value!r}" for name, value in macros.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples, a store, a student of two steps, and its evaluation on four stories."""
    folder = tmp_path_factory.mktemp("run")
    samples, store, run = (folder / name for name in ("samples.jsonl.gz", "store", "student"))
    assert call("teach", "stories", "--out", samples, "--stories", 8, "--samples", 2) == 0
    task = "stories_teacher_zero_shot_cot"
    assert call("prepare", samples, "--out", store, "--task", task) == 0
    macros = {"MODEL_DIR": str(run), "TEACHER_STORE": str(store), "TRAIN_STEPS": 2, "LOG_PERIOD": 1}
    assert call("train", KL, *flags(**macros), *QUICK) == 0
    macros = {"CHECKPOINT_PATH": str(run), "EVAL_OUTPUT_DIR": str(run / "test")}
    macros |= {"MIXTURE_OR_TASK_NAME": "stories_zero_shot_cot", "MAX_EXAMPLES": 4}
    macros |= {"MAX_DECODE_LENGTH": 4, "DECODE_BATCH_SIZE": 4}
    file = "--gin_file=experiments/world_evaluate.gin"
    assert call("evaluate", file, *flags(**macros)) == 0
    return folder


def test_results_are_replaced_by_overwrite_alone(folder, tmp_path, capfd):
    macros = {"CHECKPOINT_PATH": str(folder / "student"), "EVAL_OUTPUT_DIR": str(tmp_path)}
    macros |= {"MIXTURE_OR_TASK_NAME": "stories_zero_shot_answer", "MAX_DECODE_LENGTH": 2}
    codes = []
    for count, more in ((2, []), (1, []), (1, ["--overwrite"])):
        codes.append(call(*EVALUATE, *flags(**macros, MAX_EXAMPLES=count), *more))
    assert codes == [0, 2, 0]
    errors = capfd.readouterr().err
    assert "stories_zero_shot_answer (1 of 1): 2 of 2 questions, " in errors
    assert "(others: max_examples); expected" in errors and "--overwrite" in errors
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 1


def test_teach_writes_samples(folder):
    samples = list(read_samples(folder / "samples.jsonl.gz"))
    assert len(samples) == 16
    assert len({sample.id for sample in samples}) == 8


def test_prepare_makes_a_store_of_the_right_ones(folder):
    samples = list(read_samples(folder / "samples.jsonl.gz"))
    right = sum(s.text.endswith(f"The answer is {s.gold_answer}") for s in samples)
    manifest = json.loads((folder / "store" / "manifest.json").read_text())
    assert (manifest["read"], manifest["kept"]) == (16, right)


def test_prepare_says_what_became_of_the_records_and_where_they_are(folder, tmp_path, capfd):
    samples = list(read_samples(folder / "samples.jsonl.gz"))
    right = next(s for s in samples if s.text.endswith(f"The answer is {s.gold_answer}"))
    cut = dataclasses.replace(right, id="other", finish_reason="length")
    write_samples(tmp_path / "samples.jsonl", [right, cut])
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write("half a line")
    arguments = [tmp_path / "samples.jsonl", "--out", tmp_path / "out", *TASK]
    assert call("prepare", *arguments, "--max-rejected", 0.4) == 0
    first, second, third, *_, last = capfd.readouterr().out.splitlines()
    assert first == "3 read = 1 kept + 1 dropped + 1 rejected"
    assert (second, third) == ("dropped: truncated 1", "rejected: bad_json 1")
    assert last == f"store in {tmp_path / 'out'}; see {tmp_path / 'out' / 'prepare_report.html'}"
    assert (tmp_path / "out" / "prepare_report.html").is_file()
    # Other rules would make another store in its place.
    other = [*arguments, "--max-rejected", 0.4, "--rules", "none"]
    assert call("prepare", *other) == 2
    assert "filters.rules own instead of none" in capfd.readouterr().err
    assert call("prepare", *other, "--overwrite") == 0
    assert capfd.readouterr().out.startswith("3 read = 2 kept + 0 dropped + 1 rejected\n")


def test_given_rationales_are_not_judged(tmp_path, capfd):
    (tmp_path / "sums.tsv").write_text("One and one?\t2\tNobody knows.\n")
    assert call("prepare", tmp_path / "sums.tsv", "--out", tmp_path / "out", *TASK) == 0
    assert capfd.readouterr().out.startswith("1 read = 1 kept + 0 dropped + 0 rejected\n")
    capfd.readouterr()
    arguments = ["--out", tmp_path / "judged", *TASK, "--rules", "default"]
    assert call("prepare", tmp_path / "sums.tsv", *arguments) == 2
    assert "'no_answer': 1" in capfd.readouterr().err


def test_samples_of_another_data_set_are_refused_before_anything_is_written(
    folder, tmp_path, capfd
):
    samples = folder / "samples.jsonl.gz"
    arguments = ["--out", tmp_path / "out", "--task", "gsm8k_teacher_zero_shot_cot"]
    vocabulary = f"--gin.T5_VOCABULARY_FILE={VOCABULARY_PATH}"
    assert call("prepare", samples, *arguments, vocabulary) == 2
    assert (
        f"got {samples} with samples of stories for gsm8k_teacher_zero_shot_cot; expected samples "
        "of gsm8k, whose answer kind and exemplars the task has; give --task "
        "stories_teacher_zero_shot_cot, or other samples"
    ) in capfd.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_samples_of_an_unknown_data_set_are_counted(tmp_path, capfd):
    (tmp_path / "sums.tsv").write_text("One and one?\t2\tIt is 2.\n")
    assert call("prepare", tmp_path / "sums.tsv", "--out", tmp_path / "out", *TASK) == 0
    assert "kept by data set: 1 (sums 1)\n" in capfd.readouterr().out


def test_chains_on_held_out_questions_are_left_out_by_name(folder, tmp_path, capfd):
    samples = list(read_samples(folder / "samples.jsonl.gz"))
    held_out = [dataclasses.replace(sample, split="test") for sample in samples[:4]]
    write_samples(tmp_path / "samples.jsonl", [*held_out, *samples[4:]])
    arguments = [tmp_path / "samples.jsonl", "--out", tmp_path / "out", *TASK, "--rules", "none"]
    assert call("prepare", *arguments, "--similarity", 0) == 0
    first, second, *_ = capfd.readouterr().out.splitlines()
    assert (first, second) == ("16 read = 12 kept + 4 dropped + 0 rejected", "dropped: held_out 4")
    arguments += ["--similarity", 0, "--held-out-splits", "none", "--overwrite"]
    assert call("prepare", *arguments) == 0
    assert capfd.readouterr().out.startswith("16 read = 16 kept + 0 dropped + 0 rejected\n")


def test_prepare_needs_no_macros_of_training(folder, tmp_path, capfd):
    """A team's own gin file, which includes a run's, may be given as it is."""
    (tmp_path / "own.gin").write_text("include 'experiments/world_base.gin'\n")
    own = f"--gin_file={tmp_path / 'own.gin'}"
    samples = folder / "samples.jsonl.gz"
    assert call("prepare", samples, "--out", tmp_path / "out", *TASK, own) == 0
    capfd.readouterr()
    assert call("prepare", samples, *TASK, own) == 2
    assert "got no value for TEACHER_STORE; expected one; pass --out" in capfd.readouterr().err


def test_prepares_flags_are_its_settings(folder, tmp_path):
    flags = [
        "--require-logprobs",
        "--majority",
        "--consistent",
        "--similarity",
        0,
        "--per-question",
        3,
    ]
    flags += ["--balance", 2, "--max-target-tokens", 70, "--max-question-tokens", 200]
    flags += ["--alignment", "fu2023", "--projection", "paths", "--workers", 1]
    flags += ["--columns", "question=ticket,text=reasoning"]  # samples files have their own
    flags += ["--held-out-splits", "dev", "--max-unknown", 0.2, "--max-unknown-chains", 0.3]
    flags += ["--chain", "both", "--max-thought-tokens", 64]
    flags += ["--max-nats", 9, "--min-likeliest", 0.1]
    samples = folder / "samples.jsonl.gz"
    assert call("prepare", samples, "--out", tmp_path, *TASK, *flags, "--top-k", 4) == 0
    settings = json.loads((tmp_path / "manifest.json").read_text())["plan"]["settings"]
    assert settings == {
        "filters": {
            "rules": "own",
            "answer_kind": "number",
            "held_out_splits": ["dev"],
            "require_logprobs": True,
            "majority": True,
            "consistent": True,
            "similarity": None,
            "per_question": 3,
            "balance": 2,
        },
        "top_k": 4,
        "alignment": "fu2023",
        "projection": "paths",
        "max_target_tokens": 70,
        "max_question_tokens": 200,
        "columns": {"question": "ticket", "text": "reasoning"},
        "max_unknown": 0.2,
        "chain": "both",
        "max_thought_tokens": 64,
        "template": dataclasses.asdict(TEMPLATES["t5"].worded(ENGLISH)),
    }


def test_train_leaves_metrics_a_checkpoint_and_its_configuration(folder):
    rows = run_folder.read_metrics(str(folder / "student"))
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["kl"] > 0 for row in rows)
    assert open_source(str(folder / "student")).place == str(folder / "student/checkpoints/2")
    configuration.parse([str(folder / "student" / "config.gin")], [])
    assert configuration.macro("TRAIN_STEPS") == 2
    assert configuration.macro("MODEL_DIR") == str(folder / "student")


def test_train_leaves_what_the_run_is_as_data(folder):
    files = json.loads((folder / "store/manifest.json").read_text())["files"]
    facts = run_folder.read_facts(folder / "student")
    assert facts["data"] == {
        "shards": 1,
        "mixture": "stories_teacher_zero_shot_cot",
        "lengths": {"inputs": 96, "targets": 72},
        **{"split": "train", "pack": False, "shuffle": True, "seed": 0, "cached": False},
        "by_task": None,
        "leaks": {f"stories/{split}": ANY for split in ("validation", "test")},
        "prompts": {"stories_teacher_zero_shot_cot": ANY},
        "settings": {"WORLD_SEED": 0, "registration.prompting.shots": 2},
        "store": str(folder / "store"),
        "fingerprint": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }
    training = facts["training"]
    assert (training["optimizer"], training["schedule"]) == ("adamw", "warmup_cosine")
    assert training["learning_rate"] == 1e-2
    assert training["steps"] == 2 and facts["objective"]["kl_weight"] == 1.0


def test_evaluate_leaves_results_and_predictions(folder):
    results = json.loads((folder / "student" / "test" / "results.json").read_text())
    assert results["tasks"]["stories_zero_shot_cot"]["count"] == 4
    with open(folder / "student" / "test" / "predictions.jsonl") as rows:
        assert len(list(rows)) == 4


MODEL_DIR = ["--gin.MODEL_DIR='{tmp}/run'"]
STORE = ["--gin.TEACHER_STORE='{store}'"]
OUT = ["--out", "{tmp}/out"]
TASK = ["--task", "stories_teacher_zero_shot_cot"]
EVALUATE = ["evaluate", "--gin_file=experiments/world_evaluate.gin"]
EVALUATE += ["--gin.EVAL_OUTPUT_DIR='{tmp}/test'"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "{tmp}/no.jsonl", *OUT, *TASK], "{tmp}/no.jsonl: No such file"),
        (
            ["prepare", "{tmp}/bad.jsonl", *OUT, *TASK],
            "1 of 2 records .*'bad_json': 1.*at most 5.0%; .*--max-rejected",
        ),
        (["prepare", "{tmp}/bad.csv", *OUT, *TASK], "{tmp}/bad.csv: No such file"),
        (["prepare", "{tmp}/bad.jsonl", *OUT, *TASK, "--similarity", "2"], "similarity = 2.0"),
        (
            ["prepare", "{tmp}/bad.jsonl", *OUT, "--task", "stories_teacher_zero_shot_cat"],
            "'stories_teacher_zero_shot_cat'; .*stories_teacher_zero_shot_cot",
        ),
        (["prepare", "{tmp}/bad.jsonl", *OUT, "--task", "stories_teacher_cot_mix"], "task 'stor"),
        (["prepare", "{tmp}/bad.jsonl", *OUT, *TASK, "now"], "now: No such file"),
        (
            ["prepare", "{tmp}/bad.jsonl", *OUT, *TASK, "--topk"],
            "argument '--topk'; .*--gin.NAME=VALUE",
        ),
        (["teach", "import-codex", "{tmp}/no.jsonl", *OUT], "{tmp}/no.jsonl.*No such file"),
        (
            ["prepare", "{tmp}/bad.jsonl", *OUT, "--task", "storys"],
            "'storys'; .*; correct --task or",
        ),
        (["train", "--gin_file=no.gin"], "no gin file no.gin"),
        (
            ["train", "--gin-file=experiments/wrold_base.gin"],
            "one such as experiments/world_base.g",
        ),
        (["train", "experiments/world_base.gin"], "; write --gin_file=experiments/world_base.gin"),
        (["train", KL, "TRAIN_STEPS=4"], "expected --gin.NAME=VALUE; write --gin.TRAIN_STEPS=4"),
        (["train", "-gin_file=x.gin"], "argument '-gin_file=x.gin'; .*; write --gin_file=x.gin"),
        (["train", "--gin.file=x.gin"], "argument '--gin.file=x.gin'; .*; write --gin_file=x.gin"),
        (["train", "--gin_files"], "argument '--gin_files'; .*; write --gin_file=FILE"),
        (["prepare", "runs/prepare.gin", *OUT], "; write --gin_file=runs/prepare.gin"),
        (
            ["train"],
            "no --gin_file; expected an experiment: experiments/gsm8k_human_ce.gin, .*"
            "experiments/world_base.gin, .*, or your own; write cot-flax train --gin_file=FILE; ",
        ),
        (["plan", "--target=cpu"], "no --gin_file; .*experiments/world_base.gin, .*cot-flax plan"),
        (
            ["evaluate"],
            "no --gin_file; expected an experiment: experiments/gsm8k_evaluate.gin, "
            "experiments/scenario_evaluate.gin, .*experiments/world_evaluate.gin, .*or your own; ",
        ),
        (["train", KL, *MODEL_DIR, "--gin.PACK='false'"], "PACK = 'false'; .*set PACK=False"),
        (
            [
                "train",
                "--gin_file=experiments/gsm8k_human_ce.gin",
                *MODEL_DIR,
                "--gin.T5_VOCABULARY_FILE='{tmp}/bad.jsonl'",
                "--gin.GSM8K_DIRECTORY='{tmp}/gsm8k'",
            ],
            "{tmp}/bad.jsonl, which holds no SentencePiece model; .*set T5_VOCABULARY_FILE",
        ),
        (
            ["train", "--gin_file=experiments/world_answer.gin", "--gin.MODEL_DIR='{run}'"],
            "run at {run} that was begun with .*MIXTURE_OR_TASK_NAME 'stories_teacher_zero_shot"
            "_cot', not 'stories_zero_shot_answer'; .*KL_WEIGHT 1.0, not 0.0; .*--overwrite",
        ),
        (["train", KL], "no value for MODEL_DIR; .*--gin.MODEL_DIR=VALUE"),
        (["train", KL, *MODEL_DIR, "--gin.TRAIN_STEP=1"], "--gin.TRAIN_STEP; .*TRAIN_STEPS"),
        (["train", KL, "--gin.MODEL_DIR='run"], "--gin.MODEL_DIR='run .*quote the text"),
        (["train", KL, *MODEL_DIR], "no teacher store.*TEACHER_STORE"),
        (
            ["train", KL, *MODEL_DIR, "--gin.TEACHER_STORE='{tmp}'"],
            "no readable manifest.json in {tmp};",
        ),
        (
            [
                "train",
                KL,
                *MODEL_DIR,
                *STORE,
                "--gin.MIXTURE_OR_TASK_NAME='stories_few_shot_chain'",
            ],
            "'stories_few_shot_chain'; .*stories_few_shot_cot",
        ),
        (
            ["train", KL, *MODEL_DIR, "--gin.registration.format_rates.few_shot_chain=1"],
            "format_rates.*few_shot_chain",
        ),
        (
            ["train", KL, *MODEL_DIR, *STORE, "--gin.MESH_DATA=8", "--gin.BATCH_SIZE=12"],
            "BATCH_SIZE 12; expected a multiple of 8 .*set BATCH_SIZE to 16",
        ),
        (["train", KL, *MODEL_DIR, *STORE, "--gin.MESH_DATA=99"], "data=99 x model=1; .*at most 8"),
        (
            ["train", KL, *MODEL_DIR, "--gin.MIXTURE_OR_TASK_NAME='stories_zero_shot_cot'"],
            "no teacher log-probabilities in stories_zero_shot_cot; .*kl_weight > 0",
        ),
        (["train", KL, "--gin.MODEL_DIR='/dev/null/run'", *STORE], "/dev/null/run .*write to"),
        (
            [*EVALUATE, "--gin.CHECKPOINT_PATH='{run}'", "--gin.EVAL_OUTPUT_DIR='/dev/null/a'"],
            "/dev/null/a \\(.*; expected a folder to write to; check its name",
        ),
        ([*EVALUATE], "no value for CHECKPOINT_PATH"),
        ([*EVALUATE, "--gin.CHECKPOINT_PATH='{tmp}'"], "no checkpoint at {tmp} \\("),
        ([*EVALUATE, "--gin.CHECKPOINT_PATH='{run}'", "--gin.SPLIT='dev'"], "split 'dev' of stori"),
        (["report", "{tmp}/nowhere", *OUT], "{tmp}/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(folder, tmp_path, capfd, arguments, message):
    write_half_a_line(folder, tmp_path / "bad.jsonl")
    (tmp_path / "gsm8k").mkdir()
    # The last 500 are for validation, and questions of both would be another mistake.
    line = '{"question": "%d + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n'
    (tmp_path / "gsm8k" / "train.jsonl").write_text("".join(line % i for i in range(510)))
    (tmp_path / "gsm8k" / "test.jsonl").write_text(line % 511)
    before = files_of(folder)
    places = {"tmp": tmp_path, "store": folder / "store", "run": folder / "student"}
    assert call(*(argument.format(**places) for argument in arguments)) == 2
    assert_one_line(capfd.readouterr().err, message.format(**places))
    assert files_of(folder) == before and not (tmp_path / "run").exists()


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_line_goes_on_and_what_differs_is_said(folder, tmp_path, capfd):
    run = shutil.copytree(folder / "student", tmp_path / "student")
    macros = {"MODEL_DIR": str(folder / "student"), "TEACHER_STORE": str(folder / "store")}
    macros |= {"TRAIN_STEPS": 2, "LOG_PERIOD": 1}
    config = (run / "config.gin").read_text()
    assert call("train", KL, *flags(**macros), *QUICK) == 0
    assert capfd.readouterr().err.startswith("nothing to do: the run at ")
    assert files_of(folder / "student") == {
        folder / "student" / path.relative_to(run): content
        for path, content in files_of(run).items()
    }
    macros |= {"MODEL_DIR": str(run), "TRAIN_STEPS": 3, "LEARNING_RATE": 1e-3}
    assert call("train", KL, *flags(**macros), *QUICK) == 0
    said = capfd.readouterr().err
    assert "\ngoes on after step 2, 4 rows into the data\n" in said
    changes = "TRAIN_STEPS 2, not 3; LEARNING_RATE 0.01, not 0.001"
    assert f"changed since it was begun: {changes}\n" in said
    assert (run / "config.gin").read_text() == config
    assert "TRAIN_STEPS = 3" in (run / "config-2.gin").read_text()
    macros |= {"RANDOM_SEED": 1, "TRAIN_STEPS": 4}
    assert call("train", KL, *flags(**macros), *QUICK) == 2
    assert "RANDOM_SEED 0, not 1;" in capfd.readouterr().err
    assert call("train", KL, *flags(**macros), *QUICK, "--accept-changes") == 0
    assert "\ngoes on after step 3, 0 rows into the data\n" in capfd.readouterr().err
    macros["TRAIN_STEPS"] = 3
    assert call("train", KL, *flags(**macros), *QUICK, "--overwrite") == 0
    assert "goes on" not in capfd.readouterr().err
    assert "TRAIN_STEPS = 3" in (run / "config.gin").read_text()
    assert not (run / "config-2.gin").exists()


def test_the_version_is_said(capfd):
    assert call("--version") == 0
    assert capfd.readouterr().out == f"cot-flax {cot_flax.__version__}\n"


def test_the_module_is_called_by_the_commands_name():
    command = [sys.executable, "-m", "cot_flax.cli", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: cot-flax train" in done.stdout and "--gin.NAME=VALUE" in done.stdout


def write_half_a_line(folder, path):
    with gzip.open(folder / "samples.jsonl.gz", "rt") as lines:
        path.write_text(next(lines) + next(lines)[:100] + "\n")


def assert_one_line(printed, message):
    (line,) = printed.splitlines()
    assert line.startswith("cot-flax: got ")
    assert re.search(message, line), line


def test_a_task_of_another_vocabulary_is_a_mistake(folder, shared_data, tmp_path, capfd):
    macros = {"CHECKPOINT_PATH": str(folder / "student"), "EVAL_OUTPUT_DIR": str(tmp_path / "out")}
    macros["T5_VOCABULARY_FILE"] = str(shared_data / "t5_vocab" / "spiece.model")
    file = "--gin_file=experiments/gsm8k_evaluate.gin"
    assert call("evaluate", file, *flags(**macros)) == 2
    assert_one_line(
        capfd.readouterr().err, "a checkpoint with vocabulary .*of gsm8k_zero_shot_cot;"
    )
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path):
    """Where TensorFlow, seqio and gin would have their say too."""
    arguments = [KL, f"--gin.MODEL_DIR='{tmp_path}'"]
    arguments += ["--gin.MIXTURE_OR_TASK_NAME='stories_zero_shot_cot'"]
    done = subprocess.run(
        [sys.executable, "-m", "cot_flax.cli", "train", *arguments],
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "no teacher log-probabilities in stories_zero_shot_cot")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "--gin_file=no.gin"], 2),
        (["train", "--gin_file=experiments/world_base.gin", "--gin.MODEL_DIR='x"], 2),
        (["--version"], 0),
        (["evaluate", "--gin_file=experiments/world_evaluate.gin", "BATCH_SIZE=1"], 2),
        (["report", "no-run"], 2),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_help_and_mistakes_of_the_command_line_import_no_large_library(arguments, code):
    """An import of what is None raises ImportError, which would not be one line."""
    blocked = "jax", "tensorflow", "torch", "seqio"
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    program += f"sys.argv = ['cot-flax', *{arguments!r}]\nfrom cot_flax.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    if code:
        assert_one_line(done.stderr, "expected")


def commands(command, path=()):
    """Every verb with its path."""
    if hasattr(command, "commands"):
        for name, verb in command.commands.items():
            yield from commands(verb, (*path, name))
    else:
        yield path


VERBS = list(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_every_verb_shows_an_example_whose_files_are_there(verb):
    shown = typer.testing.CliRunner().invoke(
        cli.app, [*verb, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}
    )
    assert shown.exit_code == 0
    example = re.search(f"Example: cot-flax {' '.join(verb)} .*", shown.output)
    assert example
    for file in re.findall(r"--gin_file=(\S+)", example[0]):
        assert (configuration.gin_root() / file).is_file(), file


def test_the_verbs_of_the_whole_path_are_there():
    assert {verb[0] for verb in VERBS} >= {"demo", "teach", "prepare", "train", "evaluate"}
