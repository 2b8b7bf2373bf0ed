"""What other teams call keeps its names and parameters, or moves in a commit of its own."""

import importlib
import inspect

import pytest

SIGNATURES = {
    "text.answers.extract_answer": "text, *, kind, mode",
    "text.answers.answers_match": "pred, gold, *, kind, mode",
    "text.answers.add_answer_kind": "name, find, *, bare",
    "chains.alignment.align": "teacher_tokens, student_pieces",
    "chains.projection.project_top_k": "alignment, logprobs, student_ids, tokenizer, *, k, rule,"
    " end_id",
    "objectives.losses.topk_kl": "logits_BTV, teacher_ids_BTK, teacher_logprobs_BTK, *, tail,"
    " temperature",
    "objectives.head_loss.distillation_loss": "hidden_BTD, head_DV, targets_BT, weights_BT,"
    " teacher_ids_BTK, teacher_logprobs_BTK, *, objective, white_box, tiles",
    "data.registration.add_cot_task": "name, source, *, parse, exemplars, fixed_exemplars,"
    " shots, formats, answer_kind, wording, template, instruction, role, max_tokens,"
    " seen_by_flan, may_leak, vocabulary, teacher_store, names, rates, chains, cut, group",
    "data.mixtures.mixture": "tasks, name",
    "data.mixtures.microbatch_shares": "examples, sizes",
    "data.sources.records_source": "make, splits, optional, left_out",
    "students.student.build": "config, special_ids",
}


def parameters(function):
    names, keyword_only = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            names, keyword_only = [*names, "*"], True
        names.append(parameter.name)
    return ", ".join(names)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_public_function_takes_what_it_took(name):
    module, _, function = name.rpartition(".")
    found = getattr(importlib.import_module(f"cot_flax.{module}"), function)
    assert parameters(found) == SIGNATURES[name]


def test_the_t5x_model_names_its_arguments():
    t5x = pytest.importorskip("cot_flax.hosts.t5x", exc_type=Exception)
    assert parameters(t5x.DistillationModel.__init__) == (
        "self, *, config, vocabulary, objective, optimizer, decoding, microbatches"
    )
