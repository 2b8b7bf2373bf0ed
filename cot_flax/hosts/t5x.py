"""Our student and objective inside T5X's own `train`, `eval` and `infer`: the one import of T5X.

What T5X's gin files need beside it is here too; gin/t5x/ puts it together.
"""

from collections.abc import Mapping
from typing import Any

from cot_flax.errors import UserError

try:
    from t5x import models, optimizers, utils
except ImportError as error:
    raise UserError(
        f"no T5X ({error})",
        "T5X at commit cc342d41 with airio and jestimator, all three from GitHub",
        "run: bash launch/setup_t5x.sh in a checkout, or use our own trainer (cot-flax train)",
    ) from error

import flax
import jax
import jax.numpy as jnp
import optax
import seqio
from clu.metrics import Average, Metric
from flax.core import freeze, unfreeze

from cot_flax.data import mixtures
from cot_flax.data.batches import TaskBatches
from cot_flax.data.converter import DistillationFeatureConverter
from cot_flax.data.features import special_ids
from cot_flax.evaluation.evaluate import Decoding
from cot_flax.generation.beam import beam_search
from cot_flax.generation.decoding import decode
from cot_flax.generation.sampling import Sampling
from cot_flax.objectives.losses import Objective
from cot_flax.students.student import build
from cot_flax.training import sharding
from cot_flax.training.optimizers import Optimizer
from cot_flax.training.step import loss_sums


class DistillationModel(models.EncoderDecoderModel):
    """A `t5x.models.EncoderDecoderModel` of our student, trained with our objective.

    Parameters have T5X's names and logical axes, so checkpoints of t5x/examples/t5 fit.

    Args:
        config: of a family of students; not scanned, or its parameters have other names than T5X's.
        objective: what training and evaluation compute. To evaluation a batch without a teacher's
            rows is plain cross entropy; training refuses it where kl_weight > 0.
        vocabulary: of inputs and targets.
        optimizer: T5X makes no step without one; None for evaluation and inference.
        decoding: how `predict_batch` decodes; its `max_tokens` is the length of predictions.
        microbatches: T5X's, which adds up the gradients of their means: each counts as much.

    Raises:
        UserError: adapters, several samples a prompt, a calculator or limits of cards, of which
            T5X knows nothing.
    """

    FEATURE_CONVERTER_CLS = DistillationFeatureConverter

    def __init__(
        self,
        *,
        config: Any,
        vocabulary: seqio.Vocabulary,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
        optimizer: Optimizer | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008 (frozen)
        microbatches: int = 1,
    ):
        student = build(config, special_ids(vocabulary))
        if student.lora is not None:
            raise UserError(
                "LoRA under T5X", "a model without adapters", "train it with cot-flax train"
            )
        if objective.white_box is not None:
            raise UserError(
                f"the objective {objective.white_box.loss} under T5X",
                "one without a teacher beside the student",
                "train it with cot-flax train",
            )
        if decoding.samples > 1:
            raise UserError(
                f"{decoding.samples} samples a prompt under T5X", "1", "use cot-flax evaluate"
            )
        if decoding.calculator is not None:
            raise UserError("a calculator under T5X", "None", "use cot-flax evaluate")
        if decoding.max_tokens is None:
            raise UserError("no max_tokens under T5X", "a number", "set MAX_DECODE_LENGTH")
        self.objective, self._decoding, self._microbatches = objective, decoding, microbatches
        super().__init__(
            module=student,
            input_vocabulary=vocabulary,
            output_vocabulary=vocabulary,
            optimizer_def=None if optimizer is None else OptaxOptimizer(optimizer.transform),
        )

    def get_initial_variables(self, rng, input_shapes, input_types=None):
        """Draws the parameters, and names their axes; the shapes of batches do not matter."""
        return freeze(self.module.init(rng))

    def loss_fn(self, params, batch, dropout_rng):
        """Returns the mean loss of a real target token (nats), and the sums behind the metrics.

        Raises:
            UserError: the objective is a KL, and the task has no teacher's rows: whatever run file
                of T5X drives it, the run would be one of cross entropy.
        """
        if self.objective.uses_teacher and not _has_rows(batch):
            raise UserError(
                "training data without a teacher's rows",
                "them, since the objective has kl_weight > 0",
                "train on a task of a teacher's store (<name>_teacher_<format>), or with "
                "objectives/cross_entropy.gin",
            )
        return self._loss(self.objective, params, batch, dropout_rng)

    def eval_fn(self, params, batch):
        """The same of a batch that is not trained on; cross entropy where it has no rows."""
        objective = self.objective if _has_rows(batch) else self.objective.without_teacher()
        return self._loss(objective, params, batch, None)

    def _loss(self, objective, params, batch, dropout_rng):
        rng = dropout_rng if self.module.uses_dropout else None
        total, sums = loss_sums(self.module, objective, params, batch, rng)
        loss = total / jnp.maximum(sums["tokens"], 1.0) / self._microbatches
        return loss, _metrics(sums, batch)

    def predict_batch_with_aux(self, params, batch, rng=None):
        """Continues the prompts of a batch.

        Returns:
            int32 [B, max_tokens], padding after the end; and {"scores": float32 [B]}: the
            log-likelihood (nats), or a beam's score by its rule.
        """
        tokens_BS, params, chosen = batch["encoder_input_tokens"], unfreeze(params), self._decoding
        student, length = self.module.for_decoding(params), chosen.max_tokens
        if chosen.beams > 1:
            output_BNT, scores_BN = beam_search(
                *student,
                tokens_BS,
                max_tokens=length,
                beams=chosen.beams,
                length_penalty=chosen.length_penalty,
                rule=chosen.beam_rule,
            )
            return output_BNT[:, 0], {"scores": scores_BN[:, 0]}
        keys_B = None if rng is None else jax.random.split(rng, len(tokens_BS))
        settings = {name: getattr(chosen, name) for name in Sampling._fields}
        output_BT = decode(*student, tokens_BS, max_tokens=length, rng=keys_B, **settings)[:, 0]
        # Nothing is computed for the scores where T5X asks for predictions alone.
        return output_BT, {
            "scores": self.score_batch(params, self._as_targets(tokens_BS, output_BT))
        }

    def _as_targets(self, tokens_BS, output_BT) -> dict[str, jax.Array]:
        ids = self.module.special_ids
        shifted_BT = jnp.pad(output_BT, ((0, 0), (1, 0)), constant_values=ids.start)[:, :-1]
        return {
            "encoder_input_tokens": tokens_BS,
            "decoder_input_tokens": shifted_BT,
            "decoder_target_tokens": output_BT,
            "decoder_loss_weights": output_BT != ids.pad,
        }

    def _compute_logits(self, params, batch, dropout_rng=None, mutable=False):
        """For T5X's `score_batch`."""
        del mutable  # of modules with state, which a student is not
        hidden_BTD = self.module.hidden(params, batch, dropout_key=dropout_rng)
        return hidden_BTD @ self.module.head(params)


class OptaxOptimizer(optimizers.OptaxWrapper):
    """T5X's wrapper, for every optax transformation and not only those whose states it lists."""

    def derive_logical_axes(self, optimizer, param_logical_axes):
        """A leaf of the state that has its parameter's shape lies where the parameter does."""

        def masked(leaf):  # a parameter that another part of a partitioned transform serves
            return isinstance(leaf, optax.MaskedNode)

        def place(leaf, param, axes):
            return leaf if masked(leaf) else axes if leaf.shape == param.shape else None

        states = optax.tree_map_params(
            self.optax_optimizer,
            place,
            optimizer.state.param_states,
            optimizer.target,
            param_logical_axes,
            transform_non_params=lambda _: None,
            is_leaf=masked,
        )
        state = optimizers.OptimizerState(step=None, param_states=states)
        return optimizer.replace(target=param_logical_axes, state=state)


def check_data(cfg: utils.DatasetConfig, model: DistillationModel) -> None:
    """T5X's `verify_matching_vocabs_fn`; it also raises UserError as `TaskBatches.check` does.

    So a run that asks for KL stops where its training data has no teacher's row.
    """
    utils.verify_matching_vocabs(cfg, model)
    if cfg.split == "train":
        data = TaskBatches(
            cfg.mixture_or_task_name,
            cfg.task_feature_lengths,
            cfg.batch_size,
            use_cached=cfg.use_cached,
        )
        data.check(model.objective, model.module.config.vocab_size)


def checkpoint(path: str | None = None) -> str | None:
    """The path of a checkpoint, where T5X can restore it; None begins from scratch.

    Raises:
        UserError: it names no step of T5X's, such as a run of ours or a Hugging Face folder.
    """
    name = (path or "").rstrip("/").rpartition("/")[2]
    if path and not name.startswith(("checkpoint", "model.ckpt")):
        raise UserError(
            f"{path} under T5X",
            "a folder checkpoint_<N> that T5X wrote",
            f"write one: cot-flax export --checkpoint {path} --format t5x --out FOLDER",
        )
    return path


def mixture(names: mixtures.Tasks) -> str:
    """One name for T5X, which takes no list of tasks, nor rates."""
    return mixtures.mixture(names)


def vocabulary(mixture_or_task_name: mixtures.Tasks) -> seqio.Vocabulary:
    """The vocabulary of tasks or a mixture."""
    return mixtures.find_task(mixture(mixture_or_task_name)).output_features["targets"].vocabulary


def axis_rules(fsdp: bool = False) -> list[tuple[str, str | None]]:
    """The logical axis rules of our own trainer, for T5X's partitioner, which makes the mesh."""
    return sharding.MeshConfig(fsdp=fsdp).rules()


def eval_period(period: int, checkpoint_period: int) -> int:
    """Steps between evaluations: 0 is at the end alone to us, and never to T5X."""
    return period or checkpoint_period


def fresh_start(state_dict, target_state_dict, *, is_resuming: bool = False):
    """T5X's transformation of a checkpoint to start from: its parameters alone are taken.

    So training begins at step 0 with a fresh optimizer, as our own trainer does, whatever optimizer
    the checkpoint comes from. With `fallback_to_scratch`, which fills in the rest.
    """
    return state_dict if is_resuming else {"target": state_dict["target"]}


@flax.struct.dataclass
class _SoftMean(Average):
    """NaN where no position has a teacher, as in a held-out split, and not 0, a perfect student."""

    def compute(self):
        return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1.0), jnp.nan)


def _has_rows(batch: Mapping[str, jax.Array]) -> bool:
    return "teacher_top_ids" in batch


def _metrics(sums: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, Metric]:
    """Means over any number of batches, under the names of `training.step.summarize`.

    With them T5X's own of speed, padding and packing, by its definitions. Its `loss` is a sum a
    step; ours is the mean of a token, as in our trainer.
    """
    targets_BT, tokens = batch["decoder_target_tokens"], sums["tokens"]
    packed = {
        side: batch[f"{side}_segment_ids"]
        for side in ("encoder", "decoder")
        if f"{side}_segment_ids" in batch
    }
    own = models.compute_base_metrics(
        logits=jnp.zeros((*targets_BT.shape, 1)),  # of its accuracy alone, which is ours below
        targets=targets_BT,
        mask=batch["decoder_loss_weights"],
        loss=sums["loss"],
        segment_ids=packed or None,
    )
    names = ("loss", "cross_entropy", "token_accuracy", "z_loss")
    means = {name: Average(sums[name], tokens) for name in names if name in sums}
    means["accuracy"] = means["token_accuracy"]
    if "soft_tokens" in sums:
        soft = sums["soft_tokens"]
        means |= {n[5:]: _SoftMean(total, soft) for n, total in sums.items() if n[:5] == "soft/"}
        means["teacher_fraction"] = Average(soft, tokens)
    return own | means
