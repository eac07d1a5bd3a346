"""Where arrays live: one (data, model) mesh, and rules that map logical axis names to its axes."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from promot_t5x import layout

Rules = tuple[tuple[str, str | None], ...]

# Every weight is cut along `data` on its embed axis and along `model` on the other: the least memory, and on a torus
# the least traffic too. Activations are cut along `data` by batch and along `model` by heads, mlp and vocab.
MIXED_RULES: Rules = (
    ("batch", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("embed", "data"),
    ("embed_activation", None),
    ("kv", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("prompts", None),
    ("prompt_length", None),
)


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """The mesh of a run and the sharding of everything on it.

    Attributes:
      num_partitions: size of the `model` axis; the remaining devices form the `data` axis (T5X's name and meaning).
      rules: (logical axis, mesh axis or None) pairs.

    >>> dict(Partitioner(num_partitions=1).mesh().shape)["model"]
    1
    """

    num_partitions: int = 1
    rules: Rules = MIXED_RULES

    def __post_init__(self):
        if self.num_partitions < 1:
            raise ValueError(f"Partitioner.num_partitions is {self.num_partitions}: expected at least 1.")

    def mesh(self) -> Mesh:
        """The (data, model) mesh over all devices of all processes."""
        return self._mesh

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """Made once: every batch asks for the mesh, and ordering thousands of devices takes a while."""
        devices = jax.devices()
        if len(devices) % self.num_partitions:
            raise ValueError(
                f"Partitioner.num_partitions is {self.num_partitions}, which does not divide the {len(devices)} devices"
                "; choose a divisor."
            )
        shape = (len(devices) // self.num_partitions, self.num_partitions)
        device_array = mesh_utils.create_device_mesh(shape, devices) if len(devices) > 1 else np.array([[devices[0]]])
        return Mesh(device_array, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    @contextlib.contextmanager
    def context(self):
        """Within it the network's activation constraints (logical names) resolve to this mesh."""
        with jax.set_mesh(self.mesh()), nn.logical_axis_rules(self.rules):
            yield

    def specs(self, logical_axes: Any) -> Any:
        """The mesh axes of every leaf of a tree of logical axis names; needs no device."""
        return nn.logical_to_mesh(logical_axes, self.rules)  # pyright: ignore[reportPrivateImportUsage]

    def shardings(self, logical_axes: Any, shapes: Any) -> Any:
        """The NamedSharding of every leaf of a parameter tree.

        Args:
          logical_axes: tree of PartitionSpecs of logical names (see EncoderDecoderModel.logical_axes).
          shapes: the same tree of arrays or ShapeDtypeStructs, to check that they divide.

        Raises:
          ValueError: a dimension does not divide over its mesh axis; names the leaf and the axis.
        """
        mesh = self.mesh()
        specs = self.specs(logical_axes)
        flat_shapes = layout.flatten(shapes)
        for name, spec in layout.flatten(specs).items():
            for size, axis in zip(flat_shapes[name].shape, spec, strict=False):
                if axis is not None and size % mesh.shape[axis]:
                    raise ValueError(
                        f"{name} has a dimension of {size}, which does not divide over the {mesh.shape[axis]} devices "
                        f"of mesh axis {axis!r}; choose another Partitioner.num_partitions or other rules."
                    )
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, _shortest(spec)), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
        )

    def batch_sharding(self) -> NamedSharding:
        """Rows of a batch over the `data` axis."""
        return NamedSharding(self.mesh(), PartitionSpec("data"))

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global device arrays of this process's rows of a batch.

        Raises:
          ValueError: the rows cannot be shared evenly by the `data` axis.
        """
        sharding = self.batch_sharding()
        rows, devices = len(next(iter(batch.values()))) * jax.process_count(), sharding.mesh.shape["data"]
        if rows % devices:
            raise ValueError(
                f"A batch has {rows} rows, which do not divide over the {devices} devices of mesh axis 'data'; choose "
                "a batch size that is a multiple of it."
            )
        return {
            name: jax.make_array_from_process_local_data(sharding, np.asarray(rows)) for name, rows in batch.items()
        }


def _shortest(spec: PartitionSpec) -> PartitionSpec:
    """Without the Nones at its end, as XLA writes it: the step's outputs would else look new and compile it again."""
    axes = list(spec)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)
