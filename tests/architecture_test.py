"""The arrows between rooms: what each may import, read off its source.

An import inside a function counts as one at the top, and so does a module's name in a string.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOUNDATION = {
    "errors": set(),
    "axes": set(),
    "files": {"errors"},
    "hub": {"errors", "files"},
    "run_folder": {"errors", "files"},
    "configuration": {"errors"},
}
# From the inside out: a room sees rooms above its own line alone, so there is no circle.
ROOMS = {
    "text": set(),
    "chains": {"text"},
    "students": {"text"},
    "objectives": {"students"},
    "generation": {"text", "students", "objectives"},
    "weights": {"text", "students"},
    "training": {"text", "students", "objectives", "generation", "weights"},
    "teacher": {"text", "chains", "students", "generation", "weights", "training"},
    "planning": {"text", "students", "objectives", "weights", "training"},
    "data": {"text", "chains", "students", "objectives", "weights"},
    "evaluation": {
        *("text", "students", "objectives", "generation", "weights", "training", "data"),
    },
    "reports": {"text", "chains", "students", "weights", "planning", "evaluation"},
    "store": {"text", "chains", "students", "data"},
    "hosts": {"text", "students", "objectives", "generation", "training", "data", "evaluation"},
    "lab": {"text", "chains", "store", "reports"},
    "tasks": {"text", "chains", "teacher", "data", "store", "lab"},
    "distill": {
        *("text", "chains", "students", "objectives", "weights", "training", "teacher"),
        *("data", "evaluation", "reports", "store"),
    },
    "serving": {"text", "students", "generation", "weights", "training", "teacher"},
    "cli": {
        *FOUNDATION,
        "serving",
        "distill",
        "text",
        "chains",
        "students",
        "weights",
        "training",
        "teacher",
    }
    | {"planning", "data", "evaluation", "reports", "store", "hosts", "lab", "tasks"},
}
ALLOWED = FOUNDATION | {room: {*FOUNDATION, *others} for room, others in ROOMS.items()}
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}
LIBRARIES = {library: {"data", "store", "tasks"} for library in TENSORFLOW} | {"t5x": {"hosts"}}
# (file, what it imports): why it may.
EXCEPTIONS = {
    ("cot_flax/distill/run.py", "cli"): "a stage is a command in a process of its own",
    ("cot_flax/data/registration.py", "store"): "a task may be read from its store",
    ("cot_flax/lab/demo.py", "tasks"): "the demo registers its tasks; they read lab/world",
    ("cot_flax/evaluation/evaluate.py", "seqio"): "tasks and mixtures are SeqIO's",
    ("cot_flax/hosts/t5x.py", "seqio"): "T5X hands a model SeqIO's feature converter",
}


def sources():
    for top in ("cot_flax", "tasks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("")
            parts = name.parts if top == "cot_flax" else ("cot_flax", *name.parts)
            room = parts[1] if parts[1] != "__init__" else None
            yield path.relative_to(ROOT).as_posix(), room, ast.parse(path.read_text())


def imported(tree):
    """Full names of all modules that it imports or names in a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, f"a relative import in line {node.lineno}"
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Constant(value=str(text)) if re.fullmatch(r"cot_flax(\.\w+)+", text):
                yield text


def forbidden(room, tree):
    """The rooms and libraries that a module of `room` imports and may not."""
    for name in imported(tree):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "cot_flax" and other in ALLOWED:
            if other not in {room, *ALLOWED[room]}:
                yield other
        elif top in LIBRARIES and room not in LIBRARIES[top]:
            yield top


def reached(room, tree):
    """Other rooms that it names in a path from its own file, as in `Path(__file__) / "room"`."""
    for node in ast.walk(tree):
        match node:
            case ast.BinOp(op=ast.Div(), right=ast.Constant(value=str(text))) if (
                "__file__" in ast.unparse(node.left)
            ):
                yield from {text.partition("/")[0]} & (ROOMS.keys() - {room})


def test_the_table_has_every_room_and_no_circle():
    rooms = {room for _, room, _ in sources() if room}
    assert rooms <= ALLOWED.keys()
    order = list(ALLOWED)
    for room, others in ALLOWED.items():
        assert all(order.index(other) < order.index(room) for other in others), room


def test_rooms_import_what_they_may():
    found = {
        (file, other) for file, room, tree in sources() if room for other in forbidden(room, tree)
    }
    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set()  # these are no longer needed


def test_no_room_reaches_into_another_by_path():
    found = {(file, other) for file, room, tree in sources() for other in reached(room, tree)}
    assert found == set()


@pytest.mark.parametrize(
    "code, names",
    [
        ("import seqio", ["seqio"]),
        ("def f():\n    from cot_flax import store", ["store"]),
        ("from cot_flax.store.layout import x", ["store"]),
        ("load('cot_flax.store')", ["store"]),
        ("import t5x.models", ["t5x"]),
        ("from cot_flax.text.answers import x\nimport jax", []),
    ],
)
def test_it_sees_what_a_room_imports(code, names):
    assert list(forbidden("chains", ast.parse(code))) == names


def test_it_sees_paths_into_other_rooms():
    code = 'Path(__file__).parent.parent / "store" / "page.css"'
    assert list(reached("reports", ast.parse(code))) == ["store"]
