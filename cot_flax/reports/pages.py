"""What all pages have in common: how a template is opened, and style.css beside this file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def template(path: Path, filters: Sequence[Callable] = ()) -> Template:
    """Opens an HTML template that can include style.css; `filters` keep their names in it."""
    environment = Environment(
        loader=FileSystemLoader((path.parent, Path(__file__).parent)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in filters})
    return environment.get_template(path.name)
