"""A student's shape as lines of gin."""

import dataclasses

import pytest

from cot_flax.configuration import draft
from cot_flax.distill import student
from cot_flax.students.t5.config import T5Config


@pytest.mark.parametrize("name", ["t5_1_1_base", "t5_1_1_xl", "t5_1_0_small", "byt5_small"])
def test_a_students_shape_is_that_of_a_file_of_models(name):
    read = draft.read([f"models/{name}.gin"])
    shape = {
        parameter: read.resolved(binding.value)[1]
        for (_, _, owner, parameter), binding in read.parameters.items()
        if owner == "T5Config"
    }
    config = dataclasses.asdict(T5Config()) | shape
    assert student.model_lines(config) == f"include 'models/{name}.gin'"
    lines = student.model_lines(config | {"emb_dim": 96})
    assert "emb_dim = 96" in lines and "include 'models/t5_1_" in lines
