"""README and docs do what they say: blocks of commands run, the others name what exists.

A block that begins with `# needs: ...` wants something that a test does not have. Every other block
runs, page after page in one folder: what a page writes, the next one reads, and the test of one
block alone first runs those before it. bash interprets a block of commands with a stand-in for
`cot-flax` that notes its arguments, which then go through the entry point in this process, with a
few flags more that make them small.
"""

import ast
import functools
import itertools
import logging
import os
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gin
import jax
import pytest
import seqio
import typer

from cot_flax import cli, configuration
from cot_flax.data import registration
from cot_flax.data.batches import TaskBatches
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.text import answers

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("README", "teach", "prepare", "train", "evaluate", "ask", "weights", "hosts", "plans")
NEEDS = "# needs:"
HARMLESS = {"bash", "cot-flax", "done", "for", "printf"}
LONGEST_README = 200
CHECKOUT = ("benchmarks", "docs", "examples", "gin", "launch", "tasks", "tests")
# What makes a command small; a command's own value gives way.
SMALL = {
    ("teach", "stories"): ["--stories=8", "--samples=2"],
    ("prepare",): ["--workers=1"],
    ("train",): [
        "--gin.TRAIN_STEPS=2",
        "--gin.BATCH_SIZE=2",
        "--gin.WARMUP_STEPS=0",
        "--gin.EVALUATORS=()",
        "--gin.t5.T5Config.num_encoder_layers=1",
        "--gin.t5.T5Config.num_decoder_layers=1",
        "--gin.MESH_DATA=1",
        "--gin.stories.size.train=64",
    ],
    ("evaluate",): [
        "--gin.MAX_EXAMPLES=2",
        "--gin.MAX_DECODE_LENGTH=2",
        "--gin.DECODE_BATCH_SIZE=2",
        "--gin.MESH_DATA=1",
    ],
}
# What a command reads before the files that it is given.
OWN_FILE = {
    "prepare": "runs/prepare.gin",
    "sample": "runs/teach.gin",
    "scenario": "runs/teach_scenario.gin",
    "rescore": "runs/rescore.gin",
}
ONE_TASK = "--gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_answer"  # of the six of world_base_mix
TWO_TASKS = "--gin.MIXTURE_OR_TASK_NAME=('stories_zero_shot_cot', 'word_sorting_zero_shot_answer')"


@dataclass(frozen=True)
class Block:
    """One fenced block of a page, at a line of it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def runs(self) -> bool:
        return not self.text.startswith(NEEDS)

    @property
    def commands(self) -> list[list[str]]:
        """Its lines of bash as words, without comments; a continued line is one."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := _words(line))]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _words(line: str) -> list[str]:
    """A line without what bash has around a command; a loop's first number stands for its name."""
    line = re.sub(r"(;\s*done.*|&|;)$", "", line.strip()).replace("=$i", "=0")
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*|do|env|export", words[0]):
        words = words[1:]
    return words


def _pages() -> list[Path]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
    return sorted(
        (page for page in pages if page.exists()),
        key=lambda page: ORDER.index(page.stem) if page.stem in ORDER else len(ORDER),
    )


def _blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page.name, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    ]


PAGES = _pages()
BLOCKS = [block for page in PAGES for block in _blocks(page)]
BASH = [block for block in BLOCKS if block.language == "bash"]


def named(blocks):
    return [pytest.param(block, id=str(block)) for block in blocks]


@pytest.fixture(scope="module", autouse=True)
def _leave_the_process_as_found(tmp_path_factory):
    """What the commands set is set for good, as in their own process."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    filters, level = list(logging.getLogger().filters), logging.getLogger("absl").level
    environment, path = dict(os.environ), list(sys.path)
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["COT_FLAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    for name, value in (before | {"jax_disable_most_optimizations": False}).items():
        jax.config.update(name, value)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    _forget_the_example_package()
    logging.getLogger().filters[:] = filters
    logging.getLogger("absl").setLevel(level)
    gin.clear_config()


def _forget_the_example_package():
    """A page's commands import it; its own tests want to see gin find it."""
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith(("ferries", "river"))]:
            registry.remove(name)
            registration._REGISTERED.pop(name, None)
    answers.ADDED.pop("time", None)
    answers.KINDS[:] = [kind for kind in answers.KINDS if kind != "time"]
    if "river_tasks.tasks" in sys.modules:
        gin.config._REGISTRY.pop("river_tasks.tasks.teacher_store")
    for name in [name for name in sys.modules if name.partition(".")[0] == "river_tasks"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages' commands run: a checkout's folders, and the store of a small demo."""
    folder = tmp_path_factory.mktemp("pages")
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    task = "stories_teacher_zero_shot_cot"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        demo = "runs/demo/samples.jsonl"
        assert call("teach", "stories", "--out", demo, "--stories", "8") == 0
        assert call("prepare", demo, "--out", "runs/demo/store", "--task", task) == 0
    return folder


def call(*arguments: str) -> int:
    """Runs the entry point; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cot-flax", *arguments])
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0
    return 0


def noted(text: str, folder: Path) -> list[list[str]]:
    """Runs a block in bash; returns the arguments of every `cot-flax` in it."""
    notes, stand_in = folder / "notes", folder / "bin" / "cot-flax"
    notes.write_text("")
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(f'#!/bin/bash\nprintf "%q " "$@" >> {notes}\necho >> {notes}\n')
    stand_in.chmod(stat.S_IRWXU)
    environment = os.environ | {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in notes.read_text().splitlines()]


def small(arguments: list[str]) -> list[str]:
    flags = next((SMALL[key] for key in SMALL if tuple(arguments[: len(key)]) == key), [])
    if "--gin_file=experiments/world_evaluate.gin" in arguments:
        arguments = [arguments[0], TWO_TASKS, *arguments[1:]]
    if "--gin_file=experiments/world_base.gin" in arguments:
        arguments = [arguments[0], ONE_TASK, *arguments[1:]]
    if any("BEST_METRICS" in argument for argument in arguments):  # which need an evaluator
        few = "--gin.evaluators.AccuracyEvaluator.max_examples=2"
        flags = [few if "EVALUATORS" in flag else flag for flag in flags]
    return [*arguments, *flags]


@pytest.fixture(scope="module")
def run(folder):
    """Runs a block once, after those of its language that the pages have before it."""
    waiting = [block for block in BLOCKS if block.runs]

    def run(block: Block) -> None:
        before = BLOCKS[: BLOCKS.index(block) + 1]
        for one in [b for b in before if b in waiting and b.language == block.language]:
            waiting.remove(one)
            RUN[one.language](one, folder)

    return run


def run_commands(block: Block, folder: Path) -> None:
    assert {words[0] for words in block.commands} <= HARMLESS, f"{block}: begin it with {NEEDS}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for found in re.findall(r"^export PYTHONPATH=(\S+)", block.text, re.M):
            patch.syspath_prepend(folder / found)
        for arguments in noted(block.text, folder):
            assert call(*small(arguments)) == 0, f"{block}: {shlex.join(arguments)}"


def run_python(block: Block, folder: Path) -> None:
    with gin.unlock_config():  # the commands of other blocks have locked it
        exec(block.text, {})


RUN = {"bash": run_commands, "python": run_python}


@pytest.mark.parametrize("block", named(b for b in BASH if b.runs))
def test_a_block_of_commands_runs(block, run):
    run(block)


@pytest.mark.parametrize("block", named(b for b in BLOCKS if b.language == "python" and b.runs))
def test_a_block_of_python_runs(block, run):
    run(block)


def test_the_data_set_of_the_example_gives_batches(run):
    """What commands of other blocks bound is forgotten."""
    (block,) = (b for b in BLOCKS if b.language == "python" and '"triage"' in b.text)
    run(block)
    gin.clear_config()
    lengths = {"inputs": 96, "targets": 96}
    data = TaskBatches("triage_zero_shot_cot", lengths, batch_size=1, shuffle=False)
    (batch,) = itertools.islice(data.batches(EncoderDecoder()), 1)
    prompt = bytes(int(i) - 3 for i in batch["encoder_input_tokens"][0] if i > 1).decode()
    target = bytes(int(i) - 3 for i in batch["decoder_target_tokens"][0] if i > 1).decode()
    assert prompt == "Q: Is 2 + 5 more than 4?\nLet's think step by step"
    assert target == "2 + 5 = 7. 2 * 2 = 4.\nThe answer is yes"
    # Its few-shot prompts show as many exemplars as by default.
    lengths = {"inputs": 512, "targets": 96}
    data = TaskBatches("triage_few_shot_cot", lengths, batch_size=1, shuffle=False)
    (batch,) = itertools.islice(data.batches(EncoderDecoder()), 1)
    prompt = bytes(int(i) - 3 for i in batch["encoder_input_tokens"][0] if i > 1).decode()
    assert prompt.count("Q: ") == 5


@pytest.mark.parametrize("block", named(BASH))
def test_commands_have_the_options_and_macros_that_they_name(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in block.commands:
        if words[0] == "cot-flax":
            check_command(words[1:])
        elif any(word.startswith("--gin_file=") for word in words):
            check_macros(words)


@pytest.mark.parametrize("block", named(b for b in BLOCKS if b.language == "gin" and b.runs))
def test_a_gin_file_binds_macros_of_what_it_includes(block):
    """Those that include T5X's files run in tests/hosts/t5x_test.py."""
    included = re.findall(r"^include '(.*)'", block.text, re.M) or ["runs/train.gin"]
    known = set().union(*(_macros(file, (ROOT / "gin",)) for file in included))
    assert set(re.findall(r"^(\w+) *=", block.text, re.M)) <= known


def check_command(words: list[str]) -> None:
    """Parses a command as its entry point does, without running it."""
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and words:
        if words[0].startswith("--gin"):  # of `teach` alone
            words = ["sample", *words]
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    options = command.make_context("cot-flax", list(words)).params
    known = {name for parameter in command.params for name in parameter.opts}
    others = [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]
    bindings = [word.removeprefix("--gin.") for word in others if word.startswith("--gin.")]
    assert len(bindings) == len(others) or options.get("runner"), others
    # A plan needs no value for MODEL_DIR; a package of others is not on the path here.
    if command.name in ("train", "evaluate") and not options["gin_search_paths"]:
        configuration.parse(options["gin_file"], bindings)
    else:
        own = OWN_FILE.get(command.name)
        check_macros([*words, *([f"--gin_file={own}"] if own else [])])


def check_macros(words: list[str]) -> None:
    """Looks for the macros of a command that is not ours to parse in its gin files."""
    paths = [w.partition("=")[2] for w in words if w.startswith("--gin_search_paths=")]
    roots = [ROOT / path for path in ",".join(paths).split(",")] + [ROOT / "gin"]
    for ship in (Path(w.partition("=")[2]) for w in words if w.startswith("--ship=")):
        roots += [ROOT / ship.parent / path[8:] for path in paths if path.startswith("shipped/")]
    known = set()
    for word in words:
        if word.startswith("--gin_file="):
            known |= _macros(word.partition("=")[2], tuple(roots))
    for word in words:
        name = re.match(r"--gin\.(\w+)=", word)
        assert not name or name[1] in known, word


@functools.cache
def _macros(file: str, roots: tuple[Path, ...]) -> frozenset[str]:
    """The macros of a gin file and of those that it includes."""
    found = [root / file for root in roots if (root / file).is_file()]
    assert found, file
    text = found[0].read_text()
    names = set(re.findall(r"^([A-Z][A-Z0-9_]*) *=", text, re.M))
    for included in re.findall(r"^include '(.*)'", text, re.M):
        names |= _macros(included, roots)
    return frozenset(names)


def test_a_block_says_its_language_and_its_needs():
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(), re.M)
        assert set(fences[::2]) <= {"bash", "gin", "python"}, page.name
        assert not any(fences[1::2]), page.name
    for block in BLOCKS:
        needs = [line for line in block.text.splitlines() if line.startswith(NEEDS)]
        assert len(needs) == (not block.runs), f"{block}: the first line of a block says it"
        assert all(line.removeprefix(NEEDS).strip() for line in needs), block


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_files_and_links_that_a_page_names_are_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link
    rooms = "|".join((*CHECKOUT, "cot_flax"))
    for path in re.findall(rf"(?<![\w/.])((?:{rooms})/[\w/.-]*\w/?)", text):
        assert (ROOT / path).exists(), path
    for file in re.findall(r"(?<![\w/])(?:experiments|objectives|models|runs|t5x)/\w+\.gin", text):
        assert (ROOT / "gin" / file).exists(), file


def _anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_tests_that_a_page_names_are_there(page):
    for file, name in re.findall(r"`(?:tests/)?([\w/]+_test\.py)::([\w:]+)", page.read_text()):
        assert name in _tests(ROOT / "tests" / file), f"{file}::{name}"


@functools.cache
def _tests(file: Path) -> frozenset[str]:
    """The tests of a file, with the name of their class where they have one."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if hasattr(part, "name")}
    return frozenset(found)


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README
