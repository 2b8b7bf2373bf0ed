"""Tests of alignment.project_top_k."""

import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.teacher.alignment import align, project_top_k
from cot_flax.teacher.codex import read_codex_dump
from cot_flax.teacher.samples import Logprobs

# Golden vectors: FranxYao/FlanT5-CoT-Specialization @ a8ffd51 (MIT), notebook
# dev_align_codex_to_flan_t5_dtw.ipynb: steps of cell 31 (the sampled token first), their rows of
# cell 37. Steps with 0.0 are left out: a log cannot say it.
STEPS = [
    ("If", 0.1009, {"If": 0.1009, "She": 0.0416, "The": 0.0394, "Nat": 0.3286, "In": 0.2685}),
    (" Nat", 0.6018, {" Nat": 0.6018, " in": 0.0261, " we": 0.0125, " 48": 0.0335, " she": 0.2588}),
    ("alia", 0.9968, {"ale": 1e-4, "ilia": 1e-4, "lia": 2e-4, " sold": 0.0013, "alia": 0.9968}),
    (" 48", 0.556, {" 24": 0.1033, " half": 0.1671, " 1": 0.0266, " (": 0.0178, " 48": 0.556}),
    ("/", 0.7438, {" /": 0.0471, "/": 0.7438, " *": 0.0386, " x": 0.0391, "*": 0.0442}),
    ("2", 0.9811, {"12": 0.0016, "1": 0.0023, "2": 0.9811, "4": 0.0085, " 2": 0.0019}),
    (" 24", 0.9896, {" 12": 5e-4, "24": 0.007, " 24": 0.9896, " ": 2e-4, " 2": 4e-4}),
    (
        " in",
        0.359,
        {".": 0.3778, " altogether": 0.0955, "\n": 0.1112, " in": 0.359, " over": 0.0129},
    ),
    (".", 0.8685, {",": 0.0226, " since": 0.0052, ".": 0.8685, "\n": 0.0827, " because": 0.0075}),
    ("\n", 0.9843, {" She": 7e-4, " So": 0.0015, "\n": 0.9843, " ": 0.0052, " In": 0.001}),
    ("In", 0.2022, {"So": 0.1476, "Therefore": 0.0765, "She": 0.0584, "The": 0.1467, "In": 0.2022}),
]
PIECES = ["▁If", "▁Nat", "alia", "▁48", "/2", "▁24", "▁in", ".", "▁In"]
ALIGNMENT = [[0], [1], [2], [3], [4, 5], [6], [7], [8, 9], [10]]
ROWS = [
    {"▁If": 1.0},
    {"▁Nat": 0.6018, "▁in": 0.0261, "▁we": 0.0125, "▁48": 0.0335, "▁she": 0.2588},
    {"alia": 0.9968, "ilia": 0.0001, "▁sold": 0.0013},
    {"▁48": 0.556, "▁24": 0.1033, "▁half": 0.1671, "▁1": 0.0266, "▁(": 0.0178},
    {"/2": 1.0},
    {"▁24": 0.9896, "▁12": 0.0005, "24": 0.007, "▁": 0.0002, "▁2": 0.0004},
    {"▁in": 0.359, ".": 0.3778, "▁altogether": 0.0955, "▁over": 0.0129},
    {".": 1.0},
    {"▁In": 1.0},
]


def logprobs_of(steps):
    tokens, probabilities, tops = zip(*steps, strict=True)
    return Logprobs(
        tokens,
        tuple(float(np.log(p)) for p in probabilities),
        tuple({token: float(np.log(p)) for token, p in top.items()} for top in tops),
    )


def rows_of(projection, piece_of):
    """The projection as {piece: probability} rows, of its present entries."""
    return [
        {piece_of[i]: float(np.exp(logprob)) for i, logprob in zip(ids, logprobs, strict=True) if i}
        for ids, logprobs in zip(projection.ids_TK, projection.logprobs_TK, strict=True)
    ]


def project(steps, pieces, vocabulary, *, alignment=None, k=6, eos_id=None):
    """Projects with token i aligned to piece i, where no alignment is given."""
    return project_top_k(
        [[t] for t in range(len(pieces))] if alignment is None else alignment,
        logprobs_of(steps),
        pieces,
        [vocabulary.get(piece, 2) for piece in pieces],
        vocabulary,
        k=k,
        eos_id=eos_id,
    )


@pytest.fixture(scope="module")
def t5(shared_data):
    sentencepiece = pytest.importorskip("sentencepiece")
    return sentencepiece.SentencePieceProcessor(
        model_file=str(shared_data / "t5_vocab" / "spiece.model")
    )


@pytest.fixture(scope="module")
def t5_vocabulary(t5):
    return {t5.id_to_piece(i): i for i in range(t5.get_piece_size())}


@pytest.fixture(scope="module")
def chains(shared_data):
    """The Codex chains that pass the gate, by (id, sample)."""
    samples = read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl")
    return {(s.id, s.sample): s for s in samples if s.finish_reason == "stop"}


def project_chain(chain, t5, vocabulary):
    pieces = t5.encode(chain.text, out_type=str)
    alignment = align(chain.logprobs.tokens, pieces)
    ids = t5.encode(chain.text)
    projection = project_top_k(alignment, chain.logprobs, pieces, ids, vocabulary, k=6, eos_id=None)
    return pieces, alignment, ids, projection


def check_golden_rows(vocabulary):
    projection = project(STEPS, PIECES, vocabulary, alignment=ALIGNMENT)
    rows = rows_of(projection, {i: piece for piece, i in vocabulary.items()})
    assert rows == [pytest.approx(row, rel=1e-5) for row in ROWS]
    assert projection.soft_T.tolist() == [len(row) > 1 for row in ROWS]


def test_reproduces_the_rows_printed_by_the_authors():
    strings = dict.fromkeys(piece for row in ROWS for piece in row)
    check_golden_rows({piece: i for i, piece in enumerate(strings, 3)})


def test_reproduces_them_with_the_vocabulary_of_t5(t5_vocabulary):
    check_golden_rows(t5_vocabulary)


VOCABULARY = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {
    f"▁{letter}": i for i, letter in enumerate("abcdefg", 3)
}


def test_shapes_types_order_and_padding():
    steps = [(" a", 0.25, {" b": 0.5, " a": 0.25, " ?": 0.125}), (" c", 0.5, {})]
    result = project(steps, ["▁a", "▁c"], VOCABULARY, k=4, eos_id=1)
    np.testing.assert_array_equal(result.ids_TK, [[4, 3, 0, 0], [5, 0, 0, 0], [1, 0, 0, 0]])
    expected = [[np.log(0.5), np.log(0.25), 0, 0], [np.log(0.5), 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(result.logprobs_TK, expected, rtol=1e-6)
    np.testing.assert_array_equal(result.soft_T, [True, True, False])
    np.testing.assert_allclose(result.kept_mass_T, [0.75, 0.5, 1.0], rtol=1e-6)
    assert result.ids_TK.dtype == np.int32
    assert result.logprobs_TK.dtype == result.kept_mass_T.dtype == np.float32
    assert result.soft_T.dtype == bool


def test_the_sampled_token_joins_the_top():
    steps = [(" a", 0.125, {" b": 0.5, " c": 0.25})]
    np.testing.assert_array_equal(project(steps, ["▁a"], VOCABULARY, k=3).ids_TK, [[4, 5, 3]])


def test_more_than_k_keep_the_likeliest_without_renormalising():
    steps = [(" a", 0.03125, {" b": 0.5, " c": 0.25, " d": 0.125, " e": 0.0625})]
    result = project(steps, ["▁a"], VOCABULARY, k=3)
    np.testing.assert_array_equal(result.ids_TK, [[4, 5, 6]])
    np.testing.assert_allclose(result.kept_mass_T, [0.875], rtol=1e-6)


def test_of_duplicates_the_first_counts():
    steps = [(" a", 0.25, {"▁a": 0.5, " b": 0.125, "▁b": 0.0625})]
    result = project(steps, ["▁a"], VOCABULARY, k=3)
    np.testing.assert_array_equal(result.ids_TK, [[3, 4, 0]])
    np.testing.assert_allclose(result.kept_mass_T, [0.375], rtol=1e-6)


def test_the_pad_id_is_never_a_teacher_token():
    result = project([(" a", 0.5, {"<pad>": 0.25, " b": 0.125})], ["▁a"], VOCABULARY, k=3)
    np.testing.assert_array_equal(result.ids_TK, [[3, 4, 0]])
    np.testing.assert_allclose(result.kept_mass_T, [0.625], rtol=1e-6)


@pytest.mark.parametrize(
    ("token", "piece", "indices"),
    [
        ("a", "▁a", [0]),  # the first word of a line
        (" a", "▁b", [0]),  # another string
        (" a", "▁a", [0, 0]),  # several tokens
        (" a", "▁a", []),  # none
        ("{", "{", [0]),  # equal, but no piece of the vocabulary
    ],
)
def test_one_hot_where_the_rule_does_not_hold(token, piece, indices):
    result = project([(token, 0.5, {" b": 0.25})], [piece], VOCABULARY, alignment=[indices], k=2)
    np.testing.assert_array_equal(result.ids_TK, [[VOCABULARY.get(piece, 2), 0]])
    np.testing.assert_array_equal(result.logprobs_TK, [[0, 0]])
    np.testing.assert_array_equal(result.soft_T, [False])
    np.testing.assert_array_equal(result.kept_mass_T, [1])


def test_no_pieces_give_no_rows_but_eos():
    empty = Logprobs((), (), ())
    assert project_top_k([], empty, [], [], VOCABULARY, k=2, eos_id=None).ids_TK.shape == (0, 2)
    result = project_top_k([], empty, [], [], VOCABULARY, k=2, eos_id=1)
    np.testing.assert_array_equal(result.ids_TK, [[1, 0]])


def test_refuses_what_does_not_fit():
    steps = [(" a", 0.5, {})]
    with pytest.raises(UserError, match="k = 0"):
        project(steps, ["▁a"], VOCABULARY, k=0)
    with pytest.raises(UserError, match="2 alignments, 1 pieces, 1 ids"):
        project(steps, ["▁a"], VOCABULARY, alignment=[[0], [0]])


# The figures of shared/methods.md 1.3.2, computed from the authors' files.
@pytest.mark.parametrize(
    ("question", "positions", "soft"), [("gsm8k-train-0", 40, 34), ("gsm8k-train-1", 51, 28)]
)
def test_soft_positions_of_the_papers_examples(
    question, positions, soft, chains, t5, t5_vocabulary
):
    *_, projection = project_chain(chains[question, 0], t5, t5_vocabulary)
    assert projection.soft_T.shape == (positions,)
    assert projection.soft_T.sum() == soft


def test_kept_mass_of_the_papers_example(chains, t5, t5_vocabulary):
    *_, projection = project_chain(chains["gsm8k-train-0", 0], t5, t5_vocabulary)
    mass = projection.kept_mass_T[projection.soft_T]
    assert [mass.min(), mass.max(), mass.mean()] == pytest.approx(
        [0.8452, 0.9998, 0.9762], abs=5e-5
    )
    entries = (projection.ids_TK[projection.soft_T] != 0).sum(axis=1)
    assert (entries.min(), entries.max()) == (2, 5)


def test_what_is_always_one_hot(chains, t5, t5_vocabulary):
    for chain in chains.values():
        tokens = chain.logprobs.tokens
        pieces, alignment, ids, projection = project_chain(chain, t5, t5_vocabulary)
        for t, (piece, indices) in enumerate(zip(pieces, alignment, strict=True)):
            starts_line = indices[0] == 0 or tokens[indices[0] - 1] == "\n"
            ends_line = tokens[indices[-1]] == "\n"
            if starts_line or ends_line or piece == "/2" or piece.startswith("▁$"):
                assert not projection.soft_T[t], (chain.sample, piece)
            if not projection.soft_T[t]:
                assert projection.ids_TK[t].tolist() == [ids[t], 0, 0, 0, 0, 0]
