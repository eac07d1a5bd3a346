"""ProMoT's stages as an optimizer of T5X: what a stage freezes owns no slots and keeps its bits.

Nothing here subclasses T5X's classes, and T5X, which is not on PyPI, is imported only inside functions that its
binaries call. T5X holds the whole parameter tree in its train state and hands it to the optimizer in every step.

Source: https://github.com/google-research/t5x, `optimizers.py` and `train_state.py`, for what is called how.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.serialization
import jax
import jax.numpy as jnp
import optax
from jax.interpreters import pxla
from jax.sharding import AbstractMesh, NamedSharding

from promot_t5x.models import parameter_names
from promot_t5x.models.encoder_decoder import Params
from promot_t5x.partitioning.optimizer_slots import by_path, slot_shardings
from promot_t5x.training import optimizers, stages


@dataclasses.dataclass(frozen=True, eq=False)
class StagedOptimizer:
    """T5X's optimizer definition for a stage: an optimizer over the leaves that train.

    Its state is that of `optimizers.Staged`, for any optax transformation, Adafactor's factored moments
    included; checkpoints hold its leaves by path under `state/param_states`. The learning rate and its schedule belong
    to the transformation: T5X's own learning rate is ignored.

    Attributes:
      transform: the settings of an optimizer, such as `optimizers.adafactor(...)`, or any optax transformation.
      stage: a `stages.Stage` or its name; what it does not train keeps its bits and has no slots.

    Raises:
      ValueError: no stage of that name.

    >>> StagedOptimizer(optimizers.adafactor(0.2), "prompt_tuning").staged.trains("encoder/encoder_norm/scale")
    False
    """

    transform: optimizers.Optimizer
    stage: str | stages.Stage

    def __post_init__(self):
        stages.stage(self.stage)  # a misspelt name is an error at once

    @property
    def staged(self) -> stages.Stage:
        """The stage itself."""
        return stages.stage(self.stage)

    def create(self, target: Params) -> Any:
        """T5X's Optimizer, which pairs parameters with this definition and its state."""
        from t5x import optimizers as t5x_optimizers  # pyright: ignore[reportMissingImports] - from source, not on PyPI

        return t5x_optimizers.Optimizer(self, self.init_state(target), target)

    def init_state(self, params: Any) -> Any:
        """T5X's OptimizerState before the first step.

        Raises:
          ValueError: nothing would train.
        """
        from t5x import optimizers as t5x_optimizers  # pyright: ignore[reportMissingImports] - from source, not on PyPI

        trainable, _ = stages.partition(flax.core.unfreeze(params), self.staged)
        slots = optimizers.Staged(self.transform, self.staged).init(trainable)
        return t5x_optimizers.OptimizerState(step=jnp.zeros((), jnp.int32), param_states=slots)

    def update_hyper_params(self, **overrides: Any) -> None:
        """Ignores the learning rate that T5X passes in every step: ours is in the transformation."""

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        """(params, state) after one step; frozen leaves are the same arrays as before."""
        trainable, frozen = stages.partition(flax.core.unfreeze(params), self.staged)
        gradients, _ = stages.partition(flax.core.unfreeze(grads), self.staged)
        with mesh_in_force():
            optimizer = optimizers.Staged(self.transform, self.staged)
            updates, slots = optimizer.update(gradients, state.param_states, trainable)
        updated: Any = optax.apply_updates(trainable, updates)
        new_params = jax.tree.leaves(stages.combine(updated, frozen))
        return jax.tree.unflatten(jax.tree.structure(params), new_params), state.replace(
            step=state.step + 1, param_states=slots
        )

    def state_dict(self, target: Params, state: Any) -> dict[str, Any]:
        """What T5X stores: {"target": parameters, "state": {"step", "param_states"}}, nested dictionaries of leaves.

        A slot's name is its path in optax's state. Parts of that state without leaves are left out: T5X cannot store
        an empty dictionary.
        """
        slots = parameter_names.unflatten(by_path(state.param_states))
        target_dict = flax.serialization.to_state_dict(target)
        return {"target": target_dict, "state": {"step": state.step, "param_states": slots}}

    def restore_state(self, opt_target: Params, opt_state: Any, state_dict: Mapping[str, Any]) -> tuple[Params, Any]:
        """(target, state) with the leaves of a `state_dict`, which may be arrays, shapes or mesh axes.

        Raises:
          ValueError: the state belongs to another optimizer or another stage.
        """
        target = flax.serialization.from_state_dict(opt_target, state_dict["target"])
        stored = parameter_names.flatten(state_dict["state"]["param_states"])
        expected = by_path(opt_state.param_states)
        if differing := sorted(stored.keys() ^ expected.keys()):
            raise ValueError(
                f"The checkpoint's optimizer state is not that of stage {self.staged.name}: {len(differing)} "
                f"leaves differ, such as {differing[0]}; use a new MODEL_DIR, or drop the state in ASSIGNMENT_MAP."
            )
        slots = jax.tree.unflatten(jax.tree.structure(opt_state.param_states), [stored[name] for name in expected])
        return target, opt_state.replace(step=state_dict["state"]["step"], param_states=slots)

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Params) -> Any:
        """The same Optimizer with PartitionSpecs of logical axis names as leaves: slots are cut like their parameters.

        Args:
          optimizer: T5X's Optimizer of arrays or shapes.
          param_logical_axes: a PartitionSpec of logical names for each parameter.
        """
        axes = parameter_names.flatten(param_logical_axes)
        names = tuple(sorted({name for spec in axes.values() for name in spec}))
        # The rules of `slot_shardings`, on a mesh whose axes are the logical names.
        mesh = AbstractMesh((1,) * len(names), names)
        trainable = parameter_names.flatten(stages.partition(flax.core.unfreeze(optimizer.target), self.staged)[0])
        owners = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, axes[name]))
            for name, leaf in trainable.items()
        }
        shardings = slot_shardings(optimizer.state.param_states, parameter_names.unflatten(owners))
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
        state = optimizer.state.replace(step=jax.sharding.PartitionSpec(), param_states=specs)
        return optimizer.replace(state=state, target=param_logical_axes)


def reported_learning_rate(learning_rate: float | optax.Schedule) -> Callable[[jax.Array], jax.Array]:
    """T5X's `learning_rate_fn`, which only its log uses; give it the transformation's learning rate.

    >>> float(reported_learning_rate(0.25)(jnp.int32(7)))
    0.25
    """
    return lambda step: jnp.asarray(learning_rate(step) if callable(learning_rate) else learning_rate, jnp.float32)


@contextlib.contextmanager
def mesh_in_force():
    """Lets `partitioning` and Flax's logical constraints see the mesh that T5X enters in JAX's older way."""
    with warnings.catch_warnings():
        # JAX has deprecated this way of reading a mesh together with T5X's way of entering it.
        warnings.simplefilter("ignore", DeprecationWarning)
        mesh = pxla.thread_resources.env.physical_mesh
    with contextlib.nullcontext() if mesh.empty else jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield
