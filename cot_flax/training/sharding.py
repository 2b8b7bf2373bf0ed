"""Where arrays live: a (data, model) mesh, and T5X's logical axes mapped onto it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax
from flax.linen import partitioning
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_flax.errors import UserError


@dataclass(frozen=True)
class MeshConfig:
    """How many devices split the batch and how many split the parameters.

    Attributes:
        data: devices along the batch; 0 takes all that `model` leaves.
        model: devices that split heads, MLP and vocabulary.
        fsdp: also split the width of the parameters over `data`.
    """

    data: int = 0
    model: int = 1
    fsdp: bool = False

    def __post_init__(self):
        if self.data < 0 or self.model < 1:
            raise UserError(
                f"a mesh of data={self.data} x model={self.model}",
                "data of 1 or more, or 0 for all devices; model of 1 or more",
                "correct MESH_DATA or MESH_MODEL",
            )

    def rules(self) -> list[tuple[str, str | None]]:
        """The logical axis rules: T5X's `standard_logical_axis_rules`, and `lora_rank`."""
        return [
            ("batch", "data"),
            ("vocab", "model"),
            ("mlp", "model"),
            ("heads", "model"),
            ("joined_kv", "model"),
            # Widths over `data` (ZeRO-3): parameters and optimizer shrink with the batch axis, and
            # are gathered a layer at a time.
            ("embed", "data" if self.fsdp else None),
            ("kv", None),
            ("length", None),
            ("layers", None),
            ("relpos_buckets", None),
            ("lora_rank", None),
        ]


def make_mesh(config: MeshConfig) -> Mesh:
    """Arranges the devices; raises UserError where they do not fill the mesh."""
    devices = jax.devices()  # of all processes, in the same order in each
    data = config.data or len(devices) // config.model
    if data * config.model > len(devices) or data == 0:
        raise UserError(
            f"a mesh of data={data} x model={config.model}",
            f"at most {len(devices)} devices",
            "lower MESH_DATA or MESH_MODEL",
        )
    # A device left out would leave its process waiting in the first collective.
    if jax.process_count() > 1 and data * config.model < len(devices):
        raise UserError(
            f"a mesh of data={data} x model={config.model} over {jax.process_count()} processes",
            f"all {len(devices)} devices in it",
            f"set MESH_DATA=0, and a MESH_MODEL that divides {len(devices)}",
        )
    return Mesh(arrange(devices, data, config.model), ("data", "model"))


def arrange(devices: Sequence, data: int, model: int) -> np.ndarray:
    """The first devices as [data, model]; all chips of a TPU so that neighbours are close by link.

    Several slices lie along `data`: the network between them is slower than the links.

    Raises:
        UserError: the model axis would cross from one slice into another.
    """
    # Only the links of a TPU make some neighbours nearer than others; part of a slice has no torus.
    if devices[0].platform != "tpu" or data * model < len(devices):
        return np.array(devices[: data * model]).reshape(data, model)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    # Gradients cross between slices once a step; heads would cross in every layer.
    if data % slices:
        raise UserError(
            f"a mesh of data={data} x model={model} over {slices} slices",
            "slices along data alone",
            f"set MESH_DATA=0, and a MESH_MODEL that divides {len(devices) // slices}",
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, model), (slices, 1), devices, allow_split_physical_axes=True
    )


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises UserError where the mesh and the micro-batches do not divide the batch."""
    if batch_size < 1 or microbatches < 1:
        raise UserError(
            f"BATCH_SIZE {batch_size} in {microbatches} micro-batches",
            "1 or more of both",
            "correct BATCH_SIZE or MICROBATCHES",
        )
    parts = mesh.shape["data"] * microbatches
    if batch_size % parts:
        raise UserError(
            f"BATCH_SIZE {batch_size}",
            f"a multiple of {parts} ({mesh.shape['data']} devices along data x {microbatches} "
            "micro-batches)",
            f"set BATCH_SIZE to {(batch_size // parts + 1) * parts} or change the mesh",
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device, so that every process can read it."""
    return NamedSharding(mesh, P())


class Rows:
    """The rows of a batch that this process brings: those that lie on its devices.

    Neighbouring rows lie with one process, wherever along `data` its devices are: a process then
    reads as few shards as it can.

    Attributes:
        shards: of the data, whose rows they are; see `loop.Data`.
    """

    def __init__(self, mesh: Mesh, batch_size: int, shards: int):
        # An evaluation's batch may be smaller than the mesh: then every device has all of it.
        fits = batch_size % mesh.shape["data"] == 0
        self._place = batch_sharding(mesh) if fits else replicated(mesh)
        # Row r of the data lies at place row_at[r] of the batch: the order within a batch changes
        # no sum, and a process's places along `data` may be scattered over the mesh.
        places = by_process(mesh.devices) if fits else [0]
        row_at = np.arange(batch_size).reshape(len(places), -1)[np.argsort(places)].ravel()
        spans = self._place.addressable_devices_indices_map((batch_size,)).values()
        here = {row for index in spans if index for row in row_at[index[0]]}
        # Whole shards are read, even where only part of one's rows is used here.
        size = batch_size // shards
        self.shards = sorted({int(row) // size for row in here})
        brought = np.concatenate([np.arange(i * size, (i + 1) * size) for i in self.shards])
        where = np.zeros(batch_size, int)
        where[brought] = np.arange(len(brought))
        self._where = where[row_at]

    def put(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Makes whole batches of rows of `shards`: every process brings its own."""

        def whole(array):
            shape = (len(self._where), *array.shape[1:])
            return jax.make_array_from_callback(
                shape,
                self._place,
                lambda index: array[self._where[index[0]]],  # type: ignore[index]
            )

        return {name: whole(array) for name, array in rows.items()}


def by_process(devices_DM: np.ndarray) -> list[int]:
    """The places along `data`, those of the same processes next to each other."""
    owners = [sorted({device.process_index for device in row}) for row in devices_DM]
    return sorted(range(len(owners)), key=owners.__getitem__)


def param_shardings(mesh: Mesh, rules, variables):
    """Shardings of the parameters from their logical axes.

    Args:
        variables: abstract `{"params": ..., "params_axes": ...}` from the model's init. An axis
            that its devices do not divide is replicated.
    """
    # Logical names come from the modules, the rules from the run: one model, any mesh.
    names = partitioning.get_axis_names(variables["params_axes"])
    return jax.tree.map(
        lambda leaf, axes: _fitting(mesh, partitioning.logical_to_mesh_axes(axes, rules), leaf),
        variables["params"],
        _unfreeze(names),
    )


def optimizer_shardings(transform, opt_state, params, shardings, mesh):
    """Shardings of the optimizer's state: a leaf of a parameter's shape lies where it does."""
    whole = replicated(mesh)

    def masked(leaf):  # a parameter that another part of a partitioned transform serves
        return isinstance(leaf, optax.MaskedNode)

    def place(leaf, param, sharding):
        # Adafactor's factored statistics are vectors: small enough to be everywhere whole.
        return leaf if masked(leaf) else sharding if leaf.shape == param.shape else whole

    return optax.tree_map_params(
        transform,
        place,
        opt_state,
        params,
        shardings,
        transform_non_params=lambda _: whole,
        is_leaf=masked,
    )


def _fitting(mesh, spec, leaf):
    # Replicated where it does not divide, as 6 heads over 4 devices: correct, only not smaller.
    fits = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(tuple(spec), leaf.shape, strict=True)
    ]
    return NamedSharding(mesh, P(*fits))


def _unfreeze(tree):
    return {k: _unfreeze(v) for k, v in tree.items()} if hasattr(tree, "items") else tree
