"""The recipes: each binds the numbers of its paper, no more and no fewer; headers; small runs."""

import re
import shlex

import gin
import pytest
import seqio
from support import papers

from cot_flax import configuration
from cot_flax.configuration import checks, draft, gin_root
from cot_flax.configuration.draft import Macro, Reference
from cot_flax.evaluation import evaluate as evaluation
from cot_flax.teacher.recipes import PRESETS, ho2022_temperature

FOLDER = gin_root() / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.gin") if path.stem not in papers.PARTS)
# Where things lie, and which stages are run, are no numbers of a paper.
_PLACES = re.compile(r"OUT|STAGES|T5_VOCABULARY_FILE|\w+_DIRECTORY|.*\.(directory|path|of)")
HEADER = ("Paper", "Published", "Ours", "Command", "Data", "Cost", "Differs")


@pytest.fixture(autouse=True)
def _leave_gin_as_found():
    gin.clear_config()
    yield
    gin.clear_config()


def read(name):
    return draft.read([f"recipes/{name}.gin"])


def written(value):
    """A value as the table has it: references and macros as text."""
    if isinstance(value, (Reference, Macro)):
        return repr(value)
    return tuple(map(written, value)) if isinstance(value, tuple) else value


def bound(found):
    """By name, what is bound in files of recipes/, and what the table may ask of other files."""
    values = {}
    for name, binding in found.macros.items():
        values[name] = binding
    for (scope, module, owner, parameter), binding in found.parameters.items():
        short = f"{module.rpartition('.')[2]}.{owner}.{parameter}"
        values[f"{scope}/{short}" if scope else short] = binding
    return values


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_binds_the_papers_numbers_and_no_others(name):
    assert name in papers.RECIPES, "a recipe without an entry in the table"
    table, values = papers.RECIPES[name], bound(read(name))
    own = {key for key, binding in values.items() if binding.place.startswith("recipes/")}
    required = {key for key in own if written(values[key].value) == "%gin.REQUIRED"}
    own = {key for key in own - required if not _PLACES.fullmatch(key)}
    assert own - table.keys() == set(), "bound without an entry in the table"
    assert table.keys() - values.keys() == set(), "in the table and not bound"
    found = {key: written(values[key].value) for key in table}
    assert found == {key: number.value for key, number in table.items()}
    left = table.keys() - own  # an objective's own, which no default of a run can change
    assert all(values[key].place.startswith("objectives/") for key in left)


def test_every_entry_of_the_table_has_its_recipe():
    assert sorted(papers.RECIPES) == NAMES
    assert all((FOLDER / f"{part}.gin").exists() for part in papers.PARTS)


def test_the_tables_arithmetic_is_the_papers():
    """Shares and counts of micro-batches as methods.md 1.3.4 has them."""
    printed = {
        "250m": (60.1, 1.5, 37.5, 0.9, 13.8),
        "780m": (67.7, 1.6, 30.1, 0.6, 38.2),
        "3b": (79.3, 0.56, 19.8, 0.28, 130.6),
        "11b": (79.3, 0.56, 19.8, 0.28, 130.6),
    }
    for config, (*shares, thousands) in printed.items():
        found = [100 * share for share in papers.shares(config).values()]
        assert found == pytest.approx(shares, abs=0.06)
        assert sum(papers.microbatches(config).values()) == pytest.approx(thousands * 1e3, rel=5e-3)
    assert [papers.examples_a_step(config) for config in printed] == [93, 220, 90, 60]


def test_a_teacher_is_asked_as_the_presets_do():
    """Or a recipe and `cot-flax teach` with the paper's name would differ."""
    for name, table in papers.RECIPES.items():
        if "RECIPE" not in table:
            continue
        numbers = PRESETS[table["RECIPE"].value].numbers
        asked = (
            table["TEACH_MAX_TOKENS"].value,
            table["TEACH_SHOTS"].value,
            table["TEACH_TOP_LOGPROBS"].value or None,
        )
        assert asked == (numbers.max_tokens, numbers.shots, numbers.top_logprobs), name
        if "D" not in table:
            drawn = table["TEACH_SAMPLES"].value, table["TEACH_TEMPERATURE"].value
            assert drawn == (numbers.samples, numbers.temperature), name
    drawn = PRESETS["ho2022"].numbers.temperature
    assert (ho2022_temperature(1), ho2022_temperature(8)) == (0.0, drawn) == (0.0, 0.7)


def header(name):
    """The lines of comment at the head of a recipe by their first word, each in one line."""
    lines, word = {}, ""
    for line in (FOLDER / f"{name}.gin").read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        if text.startswith("   ") and lines:
            lines[word] += f" {text.strip()}"
        elif found := re.match(r" ((?:\w+, )*\w+): (.*)", text):
            *others, word = found[1].split(", ")
            lines |= dict.fromkeys([*others, word], found[2])
        else:
            word = text.strip()
            lines[word] = word
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_a_header_has_its_lines(name):
    lines = header(name)
    assert set(HEADER) <= lines.keys()
    verb, *flags = lines["Command"].removeprefix("cot-flax ").split()
    assert verb in ("distill", "evaluate") and flags[0] == f"--gin_file=recipes/{name}.gin"
    assert re.match(r"not run|run on", lines["Ours"])


@pytest.mark.parametrize("name", NAMES)
def test_a_header_gives_the_command_flags_that_the_recipe_has(name):
    found = read(name)
    for word in shlex.split(header(name)["Command"]):
        if word.startswith("--gin."):
            checks.bind(found, word.removeprefix("--gin."))


OTHER_SIZES = [name for name in NAMES if "--gin_file=models/" in " ".join(header(name).values())]


@pytest.mark.parametrize("name", OTHER_SIZES)
def test_another_size_leaves_the_other_numbers(name):
    """A file of models/ sets what any model has, such as no dropout and no adapters."""
    _, _, text = " ".join(header(name).values()).partition("--gin_file=models/")
    words = f"--gin_file=models/{text}".split()
    files = [word[11:] for word in words if word.startswith("--gin_file=")]
    flags = [word[6:].rstrip(".") for word in words if word.startswith("--gin.")]
    found = draft.read([f"recipes/{name}.gin", *files])
    for flag in flags:
        checks.bind(found, flag)
    other = {flag.partition("=")[0] for flag in flags} - {"DROPOUT_RATE", "LORA"}
    table, values = papers.RECIPES[name], bound(found)
    assert other in ({"INITIAL_RECIPE"}, {"INITIAL_CHECKPOINT_PATH"})
    for key in table.keys() - other:
        assert written(values[key].value) == table[key].value, key
    lora = written(read(name).macros["LORA"].value)
    assert written(found.macros["LORA"].value) == lora


@pytest.mark.parametrize("name", NAMES)
def test_a_recollection_is_called_one(name):
    if any(number.origin == "recalled" for number in papers.RECIPES[name].values()):
        text = " ".join(header(name).values())
        assert re.search(r"\[R\]|not in the paper|as \w+\.gin", text)


STARTS = {
    name: table["INITIAL_CHECKPOINT_PATH"].value
    for name, table in papers.RECIPES.items()
    if "INITIAL_CHECKPOINT_PATH" in table and "_t0_" not in name  # T0's weights were never read
}


@pytest.mark.parametrize("name", STARTS)
def test_a_model_is_of_the_size_of_its_checkpoint(name):
    start, found = STARTS[name], read(name)
    (place,) = {
        binding.place.partition(",")[0]
        for key, binding in bound(found).items()
        if key == "t5.T5Config.emb_dim"
    }
    about = (gin_root() / place).read_text()
    assert re.search(rf"(?<![\w/-]){re.escape(start)}(?![\w-])", about)


DATA_SETS = {"ho2022": "svamp", "magister2022": "asdiv"}


def parse(name, *bindings):
    given = {"TRAIN_STEPS": 20, "EPOCHS": None, "MODEL_DIR": "run", "TEACHER_STORE": "store"}
    given |= {"CHECKPOINT_PATH": "run", "EVAL_OUTPUT_DIR": "out", "DATA": "mine.jsonl"}
    given |= {"EVALUATORS": (), "BEST_METRICS": ()}  # which read their data when they are made
    if data_set := DATA_SETS.get(name.partition("_")[0]):
        given["DATASET"] = data_set
    known = read(name).macros
    flags = [f"{key}={value!r}" for key, value in given.items() if key in known]
    configuration.parse([f"recipes/{name}.gin"], [*flags, *bindings], needed=())


@pytest.mark.parametrize("name", NAMES)
def test_gin_makes_all_that_the_stages_take(name):
    parse(name)
    if "LEARNING_RATE" in papers.RECIPES[name]:
        bound = gin.get_bindings("loop.train")  # makes every object that is referred to
        assert bound["optimizer"].schedule(19) > 0
        assert bound["objective"].uses_teacher <= bound["data"].has_teacher
    tasks = gin.get_bindings(evaluation.evaluate)["mixture_or_task_name"]
    for task in [tasks] if isinstance(tasks, str) else tasks:
        assert task in seqio.TaskRegistry.names() | seqio.MixtureRegistry.names()
    if "STORE_TASK" in papers.RECIPES[name]:
        task = gin.get_bindings("make.store")["task"]
        assert task in seqio.TaskRegistry.names()
