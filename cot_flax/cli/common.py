"""What the verbs share: gin flags, options that are short forms of bindings, quiet libraries."""

import difflib
import glob
import importlib
import inspect
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cot_flax.errors import UserError

GIN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
_GIN_FILE_MEANT = re.compile(r"--?gin[._-]?(gin[._-]?)?files?|--gin\.gin|--?file|--?config")


def gin_root() -> Path:
    """As of `configuration`, which is imported where it is needed: a shell that completes waits."""
    from cot_flax import configuration

    return configuration.gin_root()


def gin_names() -> list[str]:
    """The gin files of the package, as --gin_file takes them."""
    return sorted(path.relative_to(gin_root()).as_posix() for path in gin_root().rglob("*.gin"))


def complete_gin_file(incomplete: str) -> list[str]:
    """What a shell proposes: our gin files, or those that lie where the word points to."""
    here = sorted(glob.glob(f"{glob.escape(incomplete)}*.gin")) if incomplete else []
    return [*here, *(name for name in gin_names() if name.startswith(incomplete))]


GinFile = Annotated[
    list[str],
    typer.Option(
        "--gin_file",
        "--gin-file",
        help="A gin file; may be repeated: a model after an experiment.",
        autocompletion=complete_gin_file,
    ),
]
RecipeFile = Annotated[
    list[str],
    typer.Option(
        "--gin_file",
        "--gin-file",
        help="A recipe, which says the rest.",
        autocompletion=complete_gin_file,
    ),
]
SearchPaths = Annotated[
    str,
    typer.Option(
        "--gin_search_paths", "--gin-search-paths", help="Comma-separated folders of gin files."
    ),
]
CoordinatorAddress = Annotated[
    str | None,
    typer.Option(
        "--coordinator_address",
        envvar="JAX_COORDINATOR_ADDRESS",
        help="HOST:PORT of the first of several processes; TPU pods, GKE and Slurm say it.",
    ),
]
ProcessCount = Annotated[
    int | None, typer.Option("--process_count", envvar="JAX_NUM_PROCESSES", help="How many.")
]
ProcessIndex = Annotated[
    int | None, typer.Option("--process_index", envvar="JAX_PROCESS_ID", help="Which, from 0.")
]
Out = Annotated[str, typer.Option("--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there. (OVERWRITE)")]
_STAGES = {"sample": "teach", "scenario": "teach"}
"""The stages of a recipe that verbs of another name run."""
# Of an option's value, by its class or by what click calls it.
_KINDS = dict.fromkeys((int, "integer"), "a whole number") | dict.fromkeys(
    (float, "float"), "a number"
)
_GIN_PARAMETERS = (
    inspect.Parameter("gin_file", inspect.Parameter.KEYWORD_ONLY, default=[], annotation=GinFile),
    inspect.Parameter(
        "gin_search_paths", inspect.Parameter.KEYWORD_ONLY, default="", annotation=SearchPaths
    ),
)


@dataclass(frozen=True)
class Short:
    """An option or argument of a verb that is a short form of a macro's binding.

    Attributes:
        macro: what it binds.
        type: of its value; a tuple takes several words.
        help: what it is.
        panel: under which heading the help shows it.
        argument: it has no name of its own.
        value: makes what was typed into what is bound.
        flags: the macro that takes flags of other libraries, where this option is given.
    """

    macro: str
    type: type
    help: str
    panel: str | None = None
    argument: bool = False
    value: Callable[[Any], Any] = lambda typed: typed
    flags: str | None = None

    def parameter(self, name: str) -> inspect.Parameter:
        about = {"help": f"{self.help} ({self.macro})", "rich_help_panel": self.panel}
        if self.argument:
            described = typer.Argument(show_default=False, **about)
        else:
            described = typer.Option(f"--{name.replace('_', '-')}", show_default=False, **about)
        type = list[str] if self.type is tuple else self.type
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[type | None, described],
        )


def bound(
    file: str, *, libraries: bool = False, needed: Sequence[str] | None = None, **shorts: Short
) -> Callable[[Callable], Callable]:
    """Gives a verb gin's flags and short forms of bindings; the verb runs when gin has been read.

    Args:
        file: of gin, read before those that the user names.
        libraries: makes TensorFlow and JAX ready, too.
        needed: as of `configuration.parse`.
        **shorts: the options by their names; one that is given becomes a binding.
    """

    def decorate(verb: Callable) -> Callable:
        own = list(inspect.signature(verb).parameters.values())
        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(short.parameter(name) for name, short in shorts.items()),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            *_GIN_PARAMETERS,
        ]

        def command(context: typer.Context, gin_file, gin_search_paths, **values):
            from cot_flax import configuration
            from cot_flax.configuration import NoValue

            bindings = _short_bindings(context, shorts, values)
            try:
                files = [file, *gin_file]
                parse_gin(
                    context,
                    files,
                    gin_search_paths,
                    bindings,
                    libraries=libraries,
                    needed=needed,
                )
                for name in needed or ():  # a file may have unset it
                    if configuration.macro(name, None) is None:
                        raise NoValue(name)
            except NoValue as error:
                raise _with_short_form(error.macro, shorts) from error
            return verb(**{parameter.name: values[parameter.name] for parameter in own})

        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _short_bindings(context: typer.Context, shorts: Mapping[str, Short], values: dict) -> list[str]:
    bindings = {}
    for name, short in shorts.items():
        typed = values[name]
        if short.argument:
            words = words_of(context, typed)
            for word in words:
                if word.endswith(".gin"):
                    raise _gin_file_meant(word, word)
            typed = words[0] if len(words) == 1 else tuple(words) or None
        if typed is None:
            continue
        bindings[short.macro] = short.value(typed)
        if short.flags:
            bindings[short.flags] = tuple(_take_other_flags(context))
    return [f"{macro}={value!r}" for macro, value in bindings.items()]


def _with_short_form(macro: str, shorts: Mapping[str, Short]) -> UserError:
    forms = [
        name.upper() if short.argument else f"--{name.replace('_', '-')}"
        for name, short in shorts.items()
        if short.macro == macro
    ]
    remedy = f"pass {' or '.join([*forms, f'--gin.{macro}=VALUE'])}"
    return UserError(f"no value for {macro}", "one", remedy)


def parse_gin(
    context: typer.Context,
    files: list[str],
    search_paths: str,
    bindings: Sequence[str] = (),
    *,
    libraries: bool = True,
    needed: Sequence[str] | None = None,
) -> None:
    """Reads gin files and the flags of a verb; what is wrong with them costs no import of JAX.

    Args:
        bindings: before those of the flags.
        libraries: makes TensorFlow and JAX ready before what the files import does.
        needed: as of `configuration.parse`.
    """
    from cot_flax import configuration
    from cot_flax.distill import recipe

    bindings = [*bindings, *gin_bindings(context)]
    verb = context.info_name or ""
    if not files:
        raise _no_gin_file(verb)
    files = list(map(os.path.expanduser, files))
    folders = [os.path.expanduser(path) for path in search_paths.split(",") if path]
    if of_recipe := recipe.of_stage(_STAGES.get(verb, verb), files, bindings, folders):
        more, of_stage = of_recipe
        bindings, needed = [*bindings, *more], needed or of_stage
        libraries = True  # a recipe imports what all its stages use
    before = prepare_libraries if libraries else lambda: None
    configuration.parse(files, bindings, folders, needed, before)


def _no_gin_file(verb: str) -> UserError:
    """Names the experiments whose headers have a command of the verb; a plan is of a training."""
    command = f"cot-flax {'train' if verb == 'plan' else verb} "
    runs = [name for name in gin_names() if command in (gin_root() / name).read_text("utf-8")]
    return UserError(
        "no --gin_file",
        f"an experiment: {', '.join(runs)}, or your own",
        f"write cot-flax {verb} --gin_file=FILE; cot-flax experiments says what they are",
    )


def gin_bindings(context: typer.Context) -> list[str]:
    """NAME=VALUE of all --gin.NAME=VALUE."""
    bindings = []
    for argument in context.args:
        name, _, value = argument.partition("=")
        if _GIN_FILE_MEANT.fullmatch(name) or (argument.endswith(".gin") and name == argument):
            raise _gin_file_meant(argument, value or argument)
        if not argument.startswith("--gin.") or "=" not in argument:
            remedy = f"see {context.command_path} --help"
            known = [option for parameter in context.command.params for option in parameter.opts]
            if near := difflib.get_close_matches(name, known, n=1):
                remedy = f"write {near[0]}"
            elif name.isidentifier() and value:
                remedy = f"write --gin.{argument}"
            raise UserError(f"argument {argument!r}", "--gin.NAME=VALUE", remedy)
        bindings.append(argument.removeprefix("--gin."))
    return bindings


def _gin_file_meant(argument: str, file: str) -> UserError:
    file = file if file.endswith(".gin") else "FILE"
    return UserError(f"argument {argument!r}", "--gin_file=FILE", f"write --gin_file={file}")


def words_of(context: typer.Context, typed: str | list[str] | None) -> list[str]:
    """An argument's words without --NAME=VALUE, which an argument that may be missing swallows."""
    words = [typed] if isinstance(typed, str) else list(typed or ())
    several = not isinstance(typed, str)
    words, context.args[:] = [*words, *context.args], []
    texts = [word for word in words if not word.startswith("--")]
    context.args += [word for word in words if word.startswith("--")]
    context.args += [] if several else texts[1:]
    return texts if several else texts[:1]


def _take_other_flags(context: typer.Context) -> list[str]:
    """Takes the flags that are not gin's out of the context, for a library that has its own."""
    others = [word for word in context.args if not word.startswith("--gin.")]
    context.args[:] = [word for word in context.args if word.startswith("--gin.")]
    return others


def usage_error(error: Exception) -> UserError | None:
    """What to say of words that typer does not understand; None of another error."""
    # By its form: the class is click's or typer's own, as typer's version has it.
    if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "cot-flax"
    option, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    remedy = f"see {command} --help"
    if option and not parameter:
        known = [name for p in context.command.params for name in p.opts] if context else []
        near = difflib.get_close_matches(option, known, n=2) or known
        such = f"one such as {', '.join(near)}" if near else "none"
        return UserError(f"option {option} of {command}", such, remedy)
    if parameter:
        name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
        about = (getattr(parameter, "help", None) or "").split(". ")[0].rstrip(".")
        if type(error).__name__ == "MissingParameter":
            return UserError(f"no {name}", about or "a value", f"pass {name}; {remedy}")
        given = dict(itertools.pairwise(sys.argv)).get(name)
        got = f"{name} {given!r}" if given else f"{name}: {error.format_message()}"
        annotation = getattr(parameter, "type_descriptor", None) or parameter.type
        type_ = getattr(annotation, "annotation", getattr(annotation, "name", None))
        kind = _KINDS.get(type_, "another value")
        return UserError(got, f"{kind} ({about})" if about else kind, f"correct {name}")
    message = error.format_message().rstrip(".")
    verbs = getattr(context and context.command, "commands", {})
    if word := re.match(r"No such command '(.*?)'", message):
        near = difflib.get_close_matches(word[1], verbs, n=1) or verbs
        return UserError(f"command {word[1]!r}", f"one such as {', '.join(near)}", remedy)
    return UserError(message, f"what {command} takes", remedy)


def _import_quietly(module: str) -> None:
    """Imports what starts TensorFlow, whose C++ side prints about missing GPUs in any setting.

    Keras, which comes with it, would import matplotlib, for half a second.
    """
    sys.stderr.flush()
    hides = "matplotlib" not in sys.modules
    if hides:
        sys.modules["matplotlib"] = None
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            importlib.import_module(module)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if hides:
                del sys.modules["matplotlib"]


def prepare_libraries() -> None:
    """Quiets what talks too much, TensorFlow first, and keeps compiled programs between runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _import_quietly("cot_flax.data")
    prepare_jax()


def prepare_jax() -> None:
    """The same for verbs that read no data sets, so that TensorFlow stays away."""
    import logging

    import jax

    from cot_flax.files import cache

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what stops a run is raised too
    jax.config.update("jax_compilation_cache_dir", str(cache() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
