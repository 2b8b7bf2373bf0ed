"""Greedy decoding and beam search against transformers and T5X themselves, token for token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_flax.generation.beam import RULES, beam_search, search
from cot_flax.generation.decoding import decode
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.students.t5.huggingface import from_hugging_face

LENGTH = 12
PENALTIES = (0.6, 1.0, 2.0)
SMALL = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=32,
)
SHAPES = {
    "t5_1_1": SMALL,
    "t5_1_1_other": T5Config(
        vocab_size=50,
        emb_dim=24,
        num_heads=3,
        num_encoder_layers=2,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=40,
    ),
    "t5_1_0": dataclasses.replace(
        SMALL, vocab_size=32, num_heads=4, mlp_activations=("relu",), logits_via_embedding=True
    ),
}


def prompts(config):
    """Eight prompts of 1 to 15 tokens, padded."""
    tokens = np.random.default_rng(1).integers(2, config.vocab_size, (8, 15)).astype(np.int32)
    return np.where(np.arange(15) < 1 + 2 * np.arange(8)[:, None], tokens, 0)


@pytest.fixture(scope="module", params=SHAPES)
def drawn(request):
    """A model, and parameters under which answers are peaked, differ and end here and there."""
    model, rng = T5Student(SHAPES[request.param]), np.random.default_rng(4)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]

    def draw(path, leaf):
        module, name = path[-2].key, path[-1].key
        values = rng.normal(size=leaf.shape).astype(np.float32)
        values *= 0.3 if name == "scale" or module in ("query", "key") else 0.5
        if name == "scale":
            values += 1
        if module == "decoder_norm":
            values *= 3
        # Likelier and unlikelier ends than of any other token, by either kind of head.
        if name == "embedding":
            values[1] *= 3
        if module == "logits_dense":
            values[:, 1] *= 3
        return values

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def assert_same_beams(ours, theirs):
    """Best first on both sides; a place that T5X has left empty holds zeros and about -1e7."""
    tokens, scores = map(np.asarray, ours)
    np.testing.assert_array_equal(tokens, theirs[0])
    empty = theirs[1] < -1e6
    np.testing.assert_array_equal(np.isinf(scores), empty)
    np.testing.assert_allclose(scores[~empty], theirs[1][~empty], rtol=1e-4, atol=1e-5)


def assert_telling(tokens):
    """Answers of several lengths, one of them cut."""
    ends = {row.index(1) if 1 in row else LENGTH for row in tokens.reshape(-1, LENGTH).tolist()}
    assert len(ends) >= 3 and LENGTH in ends


@pytest.fixture(scope="module")
def generate(drawn):
    """transformers' own `generate` on the same parameters; options -> (tokens, scores)."""
    torch = pytest.importorskip("torch", reason="the reference needs torch and transformers")
    model, params = drawn
    theirs = _hugging_face(model.config, params)
    inputs = torch.tensor(prompts(model.config), dtype=torch.long)

    def call(beams=1, **options):
        output = theirs.generate(
            inputs,
            attention_mask=(inputs != 0).long(),
            max_new_tokens=LENGTH,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        tokens = output.sequences[:, 1:].numpy()  # without the start token
        # What follows the end is padding, 0, when greedy, and the end again, 1, with beams: theirs
        # takes a padding of 0 for none.
        after = np.cumsum(tokens == 1, axis=1) - (tokens == 1) > 0
        tokens = np.where(after, 0, tokens)
        tokens = np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])))
        scores = output.sequences_scores.numpy().reshape(-1, beams) if beams > 1 else None
        return tokens.reshape(-1, beams, LENGTH), scores

    return call


def _hugging_face(config, params):
    torch = pytest.importorskip("torch", reason="the reference needs torch and transformers")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    tied = config.logits_via_embedding
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="relu" if tied else "gated-gelu",
            tie_word_embeddings=tied,
            decoder_start_token_id=0,
        )
    )
    if not tied:  # transformers 5 ties a fresh head whatever the config says
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(theirs.lm_head.weight))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            ours, transpose = from_hugging_face(name)
            values = params
            for folder in ours.split("."):
                values = values[folder]
            parameter.copy_(torch.tensor(values.T if transpose else values))
    return theirs.eval()


def test_greedy_decoding_is_that_of_hugging_face(drawn, generate):
    expected, _ = generate()
    assert_telling(expected)
    output = decode(*drawn, prompts(drawn[0].config), max_tokens=LENGTH)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_hugging_face(drawn, generate, beams):
    inputs = prompts(drawn[0].config)
    references = {penalty: generate(beams, length_penalty=penalty) for penalty in PENALTIES}
    assert_telling(np.stack([tokens for tokens, _ in references.values()]))
    for penalty, expected in references.items():
        settings = {"max_tokens": LENGTH, "beams": beams, "length_penalty": penalty}
        assert_same_beams(beam_search(*drawn, inputs, **settings), expected)


def t5x_decoding():
    reason = "T5X is not installed; tests against it run where it is"
    return pytest.importorskip("t5x.decoding", reason=reason)


def test_beams_are_those_of_t5x(drawn):
    beams, decoding = 4, t5x_decoding()
    seqio = pytest.importorskip("seqio")
    models = pytest.importorskip("t5x.models")
    network = pytest.importorskip("t5x.examples.t5.network")
    model, params = drawn
    names = {field.name for field in dataclasses.fields(network.T5Config)} - {"dtype"}
    config = {k: v for k, v in dataclasses.asdict(model.config).items() if k in names}
    vocabulary = seqio.PassThroughVocabulary(model.config.vocab_size, eos_id=1)
    theirs = models.EncoderDecoderModel(
        module=network.Transformer(network.T5Config(**config)),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=None,
        decode_fn=decoding.beam_search,
    )
    inputs = prompts(model.config)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.zeros((len(inputs), LENGTH), np.int32),
    }

    @jax.jit
    def predict(penalty):
        return theirs.predict_batch_with_aux(
            params,
            batch,
            return_all_decodes=True,
            num_decodes=beams,
            decoder_params={"alpha": penalty},
        )

    for penalty in PENALTIES:
        tokens, aux = predict(penalty)
        expected = np.asarray(tokens)[:, ::-1], np.asarray(aux["scores"])[:, ::-1]
        assert_telling(expected[0])
        settings = {"max_tokens": LENGTH, "beams": beams, "length_penalty": penalty}
        assert_same_beams(beam_search(model, params, inputs, rule="t5x", **settings), expected)


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_the_search_over_tables_is_that_of_t5x(beams):
    """Twelve prompts; the logits depend on the position and all tokens before; one never ends."""
    decoding = t5x_decoding()
    B, V, H = 12, 8, 243
    table = 2 * np.random.default_rng(4).normal(size=(B, LENGTH, H, V)).astype(np.float32)
    table[0, :, :, 1] = -30
    table = jnp.asarray(table)
    places = jnp.arange(B).repeat(beams)

    def look_up(tokens, position, history):
        history = (history * 3 + tokens) % H
        return table[places, position, history], history

    def their_step(state):
        logits, history = look_up(
            state.cur_token[:, 0], state.cur_index, state.cache["history"][:, 0]
        )
        return logits, {"history": history[:, None]}

    def our_step(tokens_BN, position, history):
        logits, history = look_up(tokens_BN.reshape(-1), position, history.reshape(-1))
        return logits.reshape(B, beams, V), history.reshape(B, beams)

    @jax.jit
    def theirs(penalty):
        start = jnp.zeros((B, LENGTH), jnp.int32)
        cache = {"history": jnp.zeros((B, 1), jnp.int32)}
        tokens, scores = decoding.beam_search(
            start, cache, their_step, eos_id=1, num_decodes=beams, alpha=penalty
        )
        return tokens[:, ::-1], scores[:, ::-1]

    @jax.jit
    def ours(penalty):
        cache = jnp.zeros((B, beams), jnp.int32)
        settings = {"batch_size": B, "max_tokens": LENGTH, "beams": beams, "rule": RULES["t5x"]}
        return search(our_step, cache, length_penalty=penalty, **settings)

    for penalty in PENALTIES:
        expected = tuple(map(np.asarray, theirs(penalty)))
        assert_telling(expected[0])
        assert_same_beams(ours(penalty), expected)
