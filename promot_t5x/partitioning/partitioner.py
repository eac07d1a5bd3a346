"""Shardings: rules that map logical axis names to the axes of a (replica, data, model) mesh."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen import spmd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from promot_t5x.partitioning import meshes
from promot_t5x.runtime import arguments

Axes = str | tuple[str, ...] | None

Rules = tuple[tuple[str, Axes], ...]

_WHOLE = dict.fromkeys(
    ("embed_activation", "kv", "length", "layers", "relpos_buckets", "prompts", "prompt_length", "embed"), None
)

_CUT_BY_MODEL = dict.fromkeys(("vocab", "mlp", "heads", "joined_kv"), "model")

_BATCH = {"batch": ("replica", "data")}

_BATCH_EVERYWHERE = {"batch": ("replica", "data", "model")}

PRESETS: Mapping[str, Mapping[str, Axes]] = {
    # Every weight is sharded along `data` on its embed axis and along `model` on the other; activations along `data` by
    # batch and along `model` by heads, mlp and vocab. Needs the least memory and, on a torus, mostly the least traffic.
    "mixed": _WHOLE | _CUT_BY_MODEL | _BATCH | {"embed": "data"},
    # Weights are sharded over all devices of a slice and gathered for use; activations by batch alone (ZeRO-3, FSDP).
    "fully_sharded": _WHOLE | dict.fromkeys(_CUT_BY_MODEL, None) | _BATCH_EVERYWHERE | {"embed": ("data", "model")},
    # Weights are sharded along `model` alone: every row of the mesh holds the whole model (Megatron).
    "tensor": _WHOLE | _CUT_BY_MODEL | _BATCH,
    # Every device holds the whole model.
    "data": _WHOLE | dict.fromkeys(_CUT_BY_MODEL, None) | _BATCH_EVERYWHERE,
}


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Partitioner:
    """The mesh of a run and the sharding of everything on it.

    Attributes:
      preset: "mixed", "fully_sharded", "tensor" or "data" (see PRESETS).
      num_partitions: size of the `model` axis; the other devices of a slice form the `data` axis (T5X's name and
        meaning).
      model_parallel_submesh: T5X's alternative to num_partitions: the block of TPU hardware (x, y, z, cores) that one
        `model` axis fills.
      num_slices: size of the `replica` axis; None asks the devices.
      rules: (logical axis, mesh axis, tuple of them or None) pairs that override the preset's.
      devices: the devices of the mesh; None for all devices of all processes.

    >>> dict(Partitioner().mesh().shape)["model"]
    1
    """

    preset: str = "mixed"
    num_partitions: int = 1
    model_parallel_submesh: tuple[int, ...] | None = None
    num_slices: int | None = None
    rules: Rules = ()
    devices: tuple[Any, ...] | None = None

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"Partitioner.preset is {self.preset!r}: expected one of {', '.join(PRESETS)}.")
        if self.num_partitions < 1 or (self.num_slices is not None and self.num_slices < 1):
            raise ValueError(
                f"Partitioner has num_partitions={self.num_partitions}, num_slices={self.num_slices}: expected at least"
                " 1, or None for num_slices."
            )
        if self.model_parallel_submesh is not None:
            submesh = tuple(self.model_parallel_submesh)
            if min(submesh, default=0) < 1:
                raise ValueError(f"Partitioner has model_parallel_submesh={submesh}: expected at least 1 everywhere.")
            if self.num_partitions not in (1, math.prod(submesh)):
                raise ValueError(
                    f"Partitioner has num_partitions={self.num_partitions} and model_parallel_submesh={submesh}, which "
                    f"has {math.prod(submesh)} devices; give one of the two."
                )
            object.__setattr__(self, "model_parallel_submesh", submesh)
            object.__setattr__(self, "num_partitions", math.prod(submesh))
        rules = tuple((name, tuple(axes) if isinstance(axes, list) else axes) for name, axes in self.rules)
        for name, axes in rules:
            if name not in PRESETS["mixed"] or not set(_as_tuple(axes)) <= set(meshes.AXES):
                raise ValueError(
                    f"Partitioner.rules has {(name, axes)!r}: expected a logical axis among "
                    f"{', '.join(sorted(PRESETS['mixed']))} and mesh axes among {', '.join(meshes.AXES)}."
                )
        object.__setattr__(self, "rules", rules)
        if self.devices is not None:
            object.__setattr__(self, "devices", tuple(self.devices))

    def all_rules(self) -> Rules:
        """The preset's rules, overridden by `rules`."""
        return tuple({**PRESETS[self.preset], **dict(self.rules)}.items())

    def mesh(self) -> Mesh:
        """The (replica, data, model) mesh."""
        return self._mesh

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """Computed once: every batch needs the mesh, and ordering thousands of devices takes a while."""
        devices = jax.devices() if self.devices is None else self.devices
        return meshes.make_mesh(devices, self.num_partitions, self.model_parallel_submesh, self.num_slices)

    @contextlib.contextmanager
    def context(self):
        """A context in which the network's activation constraints (logical names) resolve to this mesh."""
        with jax.set_mesh(self.mesh()), nn.logical_axis_rules(self.all_rules()):
            yield

    def specs(self, logical_axes: Any) -> Any:
        """The mesh axes of every leaf of a tree of logical axis names; needs no device."""
        return spmd.logical_to_mesh(logical_axes, self.all_rules())

    def shardings(self, logical_axes: Any, shapes: Any) -> Any:
        """The NamedSharding of every leaf of a parameter tree.

        Args:
          logical_axes: tree of PartitionSpecs of logical names (see EncoderDecoderModel.logical_axes).
          shapes: the same tree of arrays or ShapeDtypeStructs, to check that their dimensions divide.

        Raises:
          ValueError: a dimension does not divide over its mesh axes; the sentence names the leaf, the axes and the
            sizes that would work.
        """
        mesh, specs = self.mesh(), self.specs(logical_axes)
        sizes = dict(mesh.shape)
        if misfit := _indivisible(specs, shapes, sizes):
            name, size, axes = misfit
            raise ValueError(
                f"{name} has a dimension of {size}, which does not divide over the "
                f"{_product(sizes, axes)} devices of mesh axis {axes!r}; {self._nearest(specs, shapes)}."
            )
        return jax.tree.map(
            lambda spec: NamedSharding(mesh, _shortest(spec)), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
        )

    def _nearest(self, specs: Any, shapes: Any) -> str:
        """Alternatives to `num_partitions` that fit, the nearest first."""
        sizes = dict(self.mesh().shape)
        per_slice = sizes["data"] * sizes["model"]
        fitting = [
            model
            for model in meshes.divisors(per_slice)
            if not _indivisible(specs, shapes, sizes | {"data": per_slice // model, "model": model})
        ]
        if not fitting:
            return "no mesh over these devices fits: choose another Partitioner.preset, other rules or another slice"
        nearest = sorted(fitting, key=lambda model: abs(math.log(model / self.num_partitions)))[:3]
        choices = [f"{model} (data {per_slice // model} x model {model})" for model in nearest]
        return f"Partitioner.num_partitions could be {', '.join(choices)}, or choose another preset or other rules"

    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch: its rows over the mesh axes of the logical axis `batch`."""
        return NamedSharding(self.mesh(), PartitionSpec(dict(self.all_rules())["batch"]))

    def batch_devices(self) -> int:
        """The number of parts into which the rows of a batch are divided."""
        return _product(dict(self.mesh().shape), dict(self.all_rules())["batch"])

    def check_rows(self, batch_size: int) -> None:
        """Raises ValueError unless the rows of a batch divide evenly over the devices."""
        if batch_size % (devices := self.batch_devices()):
            raise ValueError(
                f"A batch has {batch_size} rows, which do not divide over the {devices} devices of mesh axis "
                f"{dict(self.all_rules())['batch']!r}; "
                "choose a batch size that is a multiple of it, or more num_partitions."
            )

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch that this process's devices need, ascending.

        >>> Partitioner().rows(4)
        array([0, 1, 2, 3])
        """
        self.check_rows(batch_size)
        indices = self.batch_sharding().addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))

    def place_batch(
        self, batch: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray | None = None, batch_size: int = 0
    ) -> dict[str, jax.Array]:
        """Moves a batch to the devices, as global arrays.

        Args:
          batch: arrays by feature name, one row per example.
          rows: the rows of the global batch that these are, ascending (see the method `rows`); None for all.
          batch_size: rows of the global batch; needed with `rows`.

        Raises:
          ValueError: the rows do not divide evenly, or are not those that this process's devices need.
        """
        rows = np.arange(len(next(iter(batch.values())))) if rows is None else np.asarray(rows)
        batch_size = batch_size or len(rows)
        self.check_rows(batch_size)
        sharding = self.batch_sharding()

        def place(values: np.ndarray) -> jax.Array:
            def of_device(index: Any) -> np.ndarray:
                needed = np.arange(batch_size)[index[0]]
                positions = np.minimum(np.searchsorted(rows, needed), len(rows) - 1)
                if not np.array_equal(rows[positions], needed):
                    raise ValueError(f"A device here needs rows {needed.tolist()}, but the batch has {rows.tolist()}.")
                return values[positions]

            return jax.make_array_from_callback((batch_size, *values.shape[1:]), sharding, of_device)

        return {name: place(np.asarray(values)) for name, values in batch.items()}

    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh(), PartitionSpec())


def pieces(logical_axis: str) -> int:
    """The number of shards of a logical axis on the current mesh; 1 outside of `Partitioner.context`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    spec: Any = spmd.logical_to_mesh_axes((logical_axis,))
    return _product(dict(mesh.shape), spec[0])


def on_one_cpu() -> bool:
    """Whether the current mesh is a single CPU device; False outside of `Partitioner.context`."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty or mesh.size > 1 else mesh.abstract_device
    return device is not None and device.device_kind == "cpu"


def _as_tuple(axes: Axes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _product(sizes: Mapping[str, int], axes: Axes) -> int:
    return math.prod(sizes[axis] for axis in _as_tuple(axes))


def _indivisible(specs: Any, shapes: Any, sizes: Mapping[str, int]) -> tuple[str, int, Axes] | None:
    """The first leaf with a dimension that does not divide over its mesh axes: (name, dimension, axes)."""
    leaves = _by_path(shapes)
    for name, spec in _by_path(specs).items():
        for size, axes in zip(leaves[name].shape, spec, strict=False):
            if size % _product(sizes, axes):
                return name, size, axes
    return None


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, `encoder/layers_0/mlp/wo/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, PartitionSpec))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shortest(spec: PartitionSpec) -> PartitionSpec:
    """Drops trailing Nones, as XLA does; otherwise a step's outputs would look different and be compiled for again."""
    axes = list(spec)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)
