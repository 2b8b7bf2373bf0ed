"""T5X's model of a student's size, for the benchmarks in which T5X takes its turn."""

import importlib.util

from cot_flax.students.t5.config import T5Config

SIZES = (
    *("vocab_size", "dtype", "emb_dim", "num_heads", "head_dim", "mlp_dim", "mlp_activations"),
    *("num_encoder_layers", "num_decoder_layers", "dropout_rate", "logits_via_embedding"),
)


def present() -> bool:
    """Whether T5X can be imported; it needs jestimator too."""
    return all(importlib.util.find_spec(name) for name in ("t5x", "jestimator"))


def make(config: T5Config, network: str = "t5", *, decode_fn=None, **settings):
    """Returns a t5x EncoderDecoderModel with Adafactor.

    Args:
        config: of the student that it is compared with.
        network: which of t5x/examples.
        settings: of that network's own T5Config.
    """
    import seqio
    from t5x import adafactor, models

    made = importlib.import_module(f"t5x.examples.{network}.network")
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size, eos_id=1)
    sizes = {name: getattr(config, name) for name in SIZES}
    return models.EncoderDecoderModel(
        made.Transformer(made.T5Config(**sizes, **settings)),
        vocabulary,
        vocabulary,
        adafactor.Adafactor(
            decay_rate=0.8,
            step_offset=0,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        ),
        **({"decode_fn": decode_fn} if decode_fn else {}),
    )
