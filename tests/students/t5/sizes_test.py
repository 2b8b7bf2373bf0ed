"""The published sizes of T5: parameter counts and shapes, without the memory of one."""

import math
from collections import Counter

import gin
import jax
import pytest

from cot_flax import configuration
from cot_flax.students.t5 import T5Student
from cot_flax.text.tokenizers import SentencePieceTokenizer
from cot_flax.training.state import abstract_variables

# Parameters, d_model, d_ff, heads, d_kv and layers of each stack, of the released checkpoints.
PUBLISHED = {
    "t5_1_0_small": (60_506_624, 512, 2_048, 8, 64, 6),
    "t5_1_0_base": (222_903_552, 768, 3_072, 12, 64, 12),
    "t5_1_0_large": (737_668_096, 1_024, 4_096, 16, 64, 24),
    "t5_1_0_3b": (2_851_598_336, 1_024, 16_384, 32, 128, 24),
    "t5_1_0_11b": (11_307_321_344, 1_024, 65_536, 128, 128, 24),
    "t5_1_1_small": (76_961_152, 512, 1_024, 6, 64, 8),
    "t5_1_1_base": (247_577_856, 768, 2_048, 12, 64, 12),
    "t5_1_1_large": (783_150_080, 1_024, 2_816, 16, 64, 24),
    "t5_1_1_xl": (2_849_757_184, 2_048, 5_120, 32, 64, 24),
    "t5_1_1_xxl": (11_135_332_352, 4_096, 10_240, 64, 64, 24),
}
ROWS = 32_128  # of the embedding
OF_OTHER_SCRIPTS = {
    "mt5_small": (300_176_768, 250_112, 8, 8),
    "mt5_base": (582_401_280, 250_112, 12, 12),
    "mt5_large": (1_229_581_312, 250_112, 24, 24),
    "mt5_xl": (3_742_619_648, 250_112, 24, 24),
    "mt5_xxl": (12_921_057_280, 250_112, 24, 24),
    "umt5_small": (306_601_984, 256_384, 8, 8),
    "umt5_base": (592_043_520, 256_384, 12, 12),
    "umt5_xl": (3_768_356_864, 256_384, 24, 24),
    "umt5_xxl": (12_972_531_712, 256_384, 24, 24),
    "byt5_small": (299_637_760, 384, 12, 4),
    "byt5_base": (581_653_248, 384, 18, 6),
    "byt5_large": (1_228_183_552, 384, 36, 12),
    "byt5_xl": (3_737_801_728, 384, 36, 12),
    "byt5_xxl": (12_906_899_328, 384, 36, 12),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def size(request):
    """The numbers above, and the model of the gin file of that name."""
    configuration.parse([f"models/{request.param}.gin"], [])
    model = T5Student(gin.get_configurable("t5.T5Config")())
    gin.clear_config()
    return request.param, PUBLISHED[request.param], model


@pytest.fixture(scope="module")
def shapes(size):
    """How often each shape occurs, a scanned layer counted as often as it runs."""
    counter = Counter()
    params = abstract_variables(size[2])["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layers, shape = 1, leaf.shape
        if any(key.key == "layers" for key in path):
            layers, *shape = shape
        counter[tuple(shape)] += layers
    return counter


def test_parameters_are_as_many_as_published(size, shapes):
    name, (parameters, *_), _ = size
    assert sum(math.prod(shape) * count for shape, count in shapes.items()) == parameters
    header = (configuration.gin_root() / "models" / f"{name}.gin").read_text().splitlines()[0]
    assert header.endswith(f": {parameters:,} parameters.")


def test_shapes_follow_from_the_published_numbers(size, shapes):
    name, (_, width, mlp, heads, head, layers), _ = size
    gated = name.startswith("t5_1_1")
    expected = Counter()
    for shape, count in [
        ((ROWS, width), 1),
        ((width, ROWS), gated),  # the head; T5 1.0 has none of its own
        ((heads, 32), 2),  # position biases of encoder and decoder
        ((width,), 5 * layers + 2),  # norms: two an encoder layer, three a decoder layer, final
        ((width, heads * head), 9 * layers),  # q, k, v of three attentions
        ((heads * head, width), 3 * layers),
        ((width, mlp), (2 + 2 * gated) * layers),
        ((mlp, width), 2 * layers),
    ]:
        expected[shape] += int(count)
    assert shapes == +expected


def test_shapes_are_those_of_hugging_face(size, shapes):
    """Its kernels lie the other way round, its embedding does not."""
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    name, (_, width, mlp, heads, head, layers), _ = size
    gated = name.startswith("t5_1_1")
    config = transformers.T5Config(
        vocab_size=ROWS,
        d_model=width,
        d_ff=mlp,
        num_heads=heads,
        d_kv=head,
        num_layers=layers,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
    theirs = Counter()
    # Whether the head is tied is a matter of the checkpoint in transformers 5.
    for key, parameter in model.named_parameters(remove_duplicate=False):
        copied = key.endswith("embed_tokens.weight") or (key == "lm_head.weight" and not gated)
        if not copied:
            shape = tuple(parameter.shape)
            theirs[shape if key == "shared.weight" else shape[::-1]] += 1
    assert shapes == theirs


@pytest.mark.parametrize("name", OF_OTHER_SCRIPTS)
def test_students_of_other_scripts(name):
    """Against transformers' model of the same numbers; Xue et al. print 300M to 12.9B, too."""
    parameters, rows, encoder, decoder = OF_OTHER_SCRIPTS[name]
    configuration.parse([f"models/{name}.gin"], [])
    config = gin.get_configurable("t5.T5Config")()
    gin.clear_config()
    found = (config.vocab_size, config.num_encoder_layers, config.num_decoder_layers)
    assert found == (rows, encoder, decoder)
    shapes = Counter(T5Student(config).parameter_shapes().values())
    assert sum(math.prod(shape) * count for shape, count in shapes.items()) == parameters
    header = (configuration.gin_root() / "models" / f"{name}.gin").read_text().splitlines()[0]
    assert header.endswith(f": {parameters:,} parameters.")
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")
    kind = {"m": "MT5", "u": "UMT5", "b": "T5"}[name[0]]
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=rows,
        d_model=config.emb_dim,
        d_ff=config.mlp_dim,
        num_heads=config.num_heads,
        d_kv=config.head_dim,
        num_layers=encoder,
        num_decoder_layers=decoder,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(settings)
    theirs = Counter()
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if not key.endswith("embed_tokens.weight"):
            shape = tuple(parameter.shape)
            theirs[shape if key == "shared.weight" else shape[::-1]] += 1
    assert shapes == theirs


def test_t5s_vocabulary_fits(shared_data):
    assert (
        SentencePieceTokenizer(shared_data / "t5_vocab" / "spiece.model").vocab_size
        == 32_100
        <= ROWS
    )
