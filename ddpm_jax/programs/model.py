"""A network together with its diffusion process: what programs train, sample and measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import losses
from ddpm_jax.data import BatchChunk, ImageDataset, prepare_images
from ddpm_jax.data.conditions import Shape
from ddpm_jax.denoisers.continuous import (
    ContinuousTarget,
    continuous_x_0,
    denoiser_from_process,
    sigma_denoiser_from_process,
)
from ddpm_jax.denoisers.denoiser import make_denoiser
from ddpm_jax.denoisers.guidance import Scale, check_scale, classifier_free
from ddpm_jax.denoisers.prediction import Target, p_mean_variance
from ddpm_jax.denoisers.sigma import SigmaDenoiser, sigma_at_timesteps, sigma_denoiser
from ddpm_jax.denoisers.thresholds import Clip
from ddpm_jax.forward import ContinuousProcess, NoiseSchedule, process_sample
from ddpm_jax.forward.checks import is_number
from ddpm_jax.forward.process import q_sample
from ddpm_jax.keys import fold_in_each, make_key, normal_per_example, split_each
from ddpm_jax.likelihood.bound import bound_term, prior_term
from ddpm_jax.nn import UNet
from ddpm_jax.nn.unet import parameter_shapes
from ddpm_jax.programs import continuous, inputs
from ddpm_jax.programs.averages import extra_emas
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.diffusion import weighting_of
from ddpm_jax.programs.generator import Conditions, DenoiserOf
from ddpm_jax.training import TrainState, init_spike_guard, init_state
from ddpm_jax.types import ApplyFn, Array, Denoiser, Key, PyTree, bcast_right, describe


@dataclass(frozen=True)
class Model:
    """A network together with its diffusion process.

    Attributes:
        config: the run's configuration.
        image_shape: [H, W, C]; [L, C] for signals, [D, H, W, C] for volumes.
        num_classes: the number of classes; None for a network without labels.
        cond_features: the width D of the vectors that condition the network; None for none.
        context_features: the width D of the tokens that condition it; None for none.
        concat_features: the channels of the array concatenated to x_t; None for none.
        schedule: the schedule of the full process; of a continuous one, the table at `times`.
        network: the Flax module.
        optimizer: the Optax transformation.
        process: the process in continuous time; None for a DDPM.
        times: the T times of its table; None for a DDPM.
    """

    config: TrainConfig
    image_shape: tuple[int, ...]
    num_classes: int | None
    schedule: NoiseSchedule
    network: UNet
    optimizer: optax.GradientTransformation
    cond_features: int | None = None
    context_features: int | None = None
    concat_features: int | None = None
    process: ContinuousProcess | None = None
    times: np.ndarray | None = None

    def init(self) -> TrainState:
        """The state before the first step, a function of the seed. Not traceable: `init_shapes`."""
        # Runs once, and compiling takes longer than running: on CPUs, skip LLVM's optimisations.
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(self._state, compiler_options=quick)(make_key(self.config.seed))

    def init_shapes(self) -> TrainState:
        """The shapes of `init`, as `jax.ShapeDtypeStruct`; compiles and draws nothing."""
        params = parameter_shapes(self.network, self._input_shape)
        return jax.eval_shape(self._state_of, params, make_key(self.config.seed))

    @property
    def _input_shape(self) -> tuple[int, ...]:
        return inputs.input_shape(self.image_shape, self.concat_features)

    def _state(self, root: Key) -> TrainState:
        """The state before the first step, from the seed's key."""
        key_init, key_train = jax.random.split(root)
        x = jnp.zeros((1, *self._input_shape))
        params = self.network.init(key_init, x, jnp.zeros((1,), jnp.int32))["params"]
        return self._state_of(params, key_train)

    def _state_of(self, params: PyTree, key_train: Key) -> TrainState:
        """The state before the first step, with these parameters."""
        history = losses.init_loss_history(self.schedule.num_timesteps) if self.loss_aware else ()
        guard = () if self.config.optimizer.spike_factor is None else init_spike_guard()
        extra = len(extra_emas(self.config.optimizer))
        return init_state(params, self.optimizer, key_train, history, guard, extra)

    @property
    def loss_aware(self) -> bool:
        """Whether training draws t according to past losses."""
        return self.config.diffusion.timesteps == "importance"

    @property
    def update_loss_state(self) -> Callable[[PyTree, PyTree], PyTree] | None:
        """Adds a step's losses to the state's history; None if t does not depend on losses."""
        if not self.loss_aware:
            return None
        return lambda history, seen: losses.update_loss_history(history, seen["t"], seen["loss"])

    def training_losses(
        self, params: PyTree, batch: Any, keys: Key, loss_state: PyTree = ()
    ) -> Any:
        """The losses [b], each with t, ε, flip, dropout and label drawn from its example's key.

        `batch["image"]` is uint8 [b, H, W, C], or [b, H·W·C] as `programs.build.as_rows` stores it.
        `batch["concat"]` has the same form.
        For loss-aware sampling of t: `(weighted losses, {"t", "loss"})`, as `make_train_step`
        expects of losses with a state.
        """
        key_t, key_noise, key_flip, key_dropout, key_label = split_each(keys, 5)
        images = batch["image"].reshape(keys.shape[0], *self.image_shape)
        x_0, options = inputs.augmented(
            self.config.data.augment, images, self._dropped(batch, key_label), key_flip
        )
        noise = normal_per_example(key_noise, x_0.shape[1:])
        options["dropout_keys"] = key_dropout
        diffusion, T = self.config.diffusion, self.schedule.num_timesteps
        if self.process is not None:
            t, factor = continuous.draw_times(diffusion, self.process, key_t)
            network = self._network_of_time(params, **options)
            loss = continuous.training_loss(diffusion, self.process, network, x_0, t, noise)
            return factor * loss
        weight = None
        if self.loss_aware:
            t, weight = losses.importance_timesteps(key_t, loss_state)
        elif diffusion.timesteps == "stratified":
            t = losses.stratified_timesteps(key_t, batch["index"], self.config.batch_size, T)
        else:
            t = losses.uniform_timesteps(key_t, T)
        loss = self._objective(self.bind(params, **options), x_0, t, noise)
        if weight is None:
            return loss
        return weight * loss, {"t": t, "loss": loss}

    def _dropped(self, batch: Any, keys: Key) -> dict[str, Any]:
        """The conditions of a batch, dropped for a random share of the examples."""
        given = {name: batch[name] for name in self._condition_names}
        if "concat" in given:
            shape = (len(keys), *self.image_shape[:-1], self.concat_features)
            given["concat"] = inputs.from_pixels_or_numbers(given["concat"].reshape(shape))
        share = self.config.diffusion.label_dropout
        return inputs.drop_conditions(given, keys, share, self.num_classes)

    def heldout_losses(
        self, params: PyTree, images: Array, conditions: Conditions, t: Array, keys: Key
    ) -> Array:
        """The training loss at steps t, and an estimate of the bound in bits/dim: [b, 2].

        Without flip and dropout. The estimate is L_T + T · L_t, whose mean over evenly spaced t is
        unbiased.
        """
        x_0 = prepare_images(images, None, flip=False)
        noise = normal_per_example(fold_in_each(keys, 0), x_0.shape[1:])
        x_t = q_sample(self.schedule, x_0, t, noise)
        diffusion = self.config.diffusion
        if self.process is not None:
            process, target = self.process, self._time_target
            time = jnp.asarray(self.times)[t].astype(x_0.dtype)
            x_time = process_sample(process, x_0, time, noise)
            # The network's output is computed once for loss and bound, here and below.
            predicted = self._network_of_time(params, **conditions)(x_time, time)
            loss = continuous.training_loss(
                diffusion, process, lambda *_: predicted, x_0, time, noise
            )
            output = continuous_x_0(process, predicted, x_time, time, target=target)
        else:
            output = self.bind(params, **conditions)(x_t, t)
            loss = self._objective(lambda *_: output, x_0, t, noise)
        reverse = p_mean_variance(
            self.schedule,
            output,
            x_t,
            t,
            target=self.target,
            variance=diffusion.variance,
            clip=diffusion.clip,
        )
        T = self.schedule.num_timesteps
        bits = prior_term(self.schedule, x_0) + T * bound_term(self.schedule, reverse, x_0, x_t, t)
        return jnp.stack([loss, bits], axis=1)

    def _objective(self, apply_fn: ApplyFn, x_0: Array, t: Array, noise: Array) -> Array:
        schedule, diffusion = self.schedule, self.config.diffusion
        target, variance = self.target, diffusion.variance
        if diffusion.loss != "simple":
            objective = {"hybrid": losses.hybrid_loss, "bound": losses.bound_loss}[diffusion.loss]
            return objective(schedule, apply_fn, x_0, t, noise, target=target, variance=variance)
        loss = losses.simple_loss(schedule, apply_fn, x_0, t, noise, target=target)
        if diffusion.weighting == "none":
            return loss
        if diffusion.weighting == "bound":
            return loss * losses.bound_weight(schedule, t, target=target, variance=variance)
        return loss * losses.loss_weight(schedule, t, weighting_of(diffusion), target=target)

    def denoiser_of(
        self, params: PyTree, labels: Array | None, **conditions: Array | None
    ) -> Denoiser:
        """The denoiser with these parameters and conditions, for a `Generator`."""
        return self.guided(1.0)(params, labels, **conditions)

    @property
    def condition_shapes(self) -> dict[str, Shape]:
        """The shapes per image of the network's conditions other than the label."""
        shapes: dict[str, Any] = {
            "cond": (self.cond_features,),
            "context": ("L", self.context_features),
            "concat": (*self.image_shape[:-1], self.concat_features),
        }
        return {name: shape for name, shape in shapes.items() if shape[-1] is not None}

    @property
    def _condition_names(self) -> tuple[str, ...]:
        label = () if self.num_classes is None else ("label",)
        mask = () if self.context_features is None else ("context_mask",)
        return (*label, *self.condition_shapes, *mask)

    def conditions(
        self, data: ImageDataset | BatchChunk, rows: Any = slice(None)
    ) -> dict[str, np.ndarray]:
        """What conditions this network on rows of data: see `Conditions`."""
        given = {"label": data.labels, **data.conditions}
        return {name: given[name][rows] for name in self._condition_names}

    def other_conditions(
        self, data: ImageDataset, rows: Any = slice(None)
    ) -> dict[str, np.ndarray]:
        """The conditions of this network for rows of data, without their labels."""
        given = self.conditions(data, rows)
        return {name: x for name, x in given.items() if name != "label"}

    def guided(self, scale: Scale, clip: Clip | None = None, rescale: float = 0.0) -> DenoiserOf:
        """Like `denoiser_of`, with `classifier_free` guidance; `clip` overrides the run's setting.

        Raises ValueError for guidance of a network without conditions.
        """
        diffusion = self.config.diffusion
        check_scale("guidance", scale)
        guides = not (is_number(scale) and scale == 1.0)
        if guides and not self._condition_names:
            raise ValueError(
                f"guidance {describe(scale)} needs a conditional network, and this run's takes no "
                "labels and no other condition. Train one with --network.class-conditional, or "
                "leave guidance at 1."
            )

        def denoiser_of(
            params: PyTree, labels: Array | None, **conditions: Array | None
        ) -> Denoiser:
            conditions["label"] = labels
            given = {name: x for name, x in conditions.items() if x is not None}
            apply_fn = self.bind(params, **given)
            if guides:
                options = {"variance": diffusion.variance, "rescale": rescale}
                apply_fn = classifier_free(apply_fn, self.bind(params), scale, **options)
            return make_denoiser(
                self.schedule,
                apply_fn,
                target=self.target,
                variance=diffusion.variance,
                clip=diffusion.clip if clip is None else clip,
            )

        return denoiser_of

    def bind(self, params: PyTree, **options: Any) -> ApplyFn:
        """The network with its parameters and options bound: `(x_t, timesteps) -> output`.

        For a continuous process x_t is on the table of times, with variance one; the output is x̂_0.
        """
        if self.process is not None:
            network, target = self._network_of_time(params, **options), self._time_target
            times = cast(np.ndarray, self.times)
            on_table = denoiser_from_process(self.process, times, network, target=target)
            return cast(ApplyFn, on_table.denoise)  # never a Denoised

        apply = self._apply(params, **options)

        def apply_fn(x_t: Array, timesteps: Array) -> Any:
            x = x_t
            if self.config.diffusion.exploding:
                sigma = sigma_at_timesteps(self.schedule, timesteps)
                x = x_t * bcast_right(jnp.hypot(1.0, sigma), x_t.ndim)
            return apply(x, timesteps)

        return apply_fn

    @property
    def target(self) -> Target:
        """What `bind` predicts."""
        return "x_0" if self.process is not None else cast(Target, self.config.diffusion.target)

    @property
    def _time_target(self) -> ContinuousTarget:
        return cast(ContinuousTarget, self.config.diffusion.target)

    def _network_of_time(self, params: PyTree, **options: Any) -> ApplyFn:
        """The network `(x_t, t) -> output` of the continuous process."""
        assert self.process is not None
        apply = self._apply(params, **options)
        return continuous.network_of_time(self.config.diffusion, self.process, apply)

    def _apply(self, params: PyTree, **options: Any) -> Callable[[Array, Array], Any]:
        """The network as it is, `(x, step) -> output`, for every process."""
        cond = options.get("cond")
        if cond is not None and self.config.data.augment == "edm":
            # Zeros for the augmentation, unless training has given its vector.
            missing = inputs.network_cond_features(self.config, self.cond_features) - cond.shape[1]
            options["cond"] = jnp.pad(cond, ((0, 0), (0, missing)))
        concat = options.pop("concat", None)

        def apply(x: Array, step: Array) -> Any:
            if jnp.shape(x)[len(self.image_shape) :] != self.image_shape[-1:]:
                raise ValueError(f"this run's network takes {self.image_shape}, got {describe(x)}.")
            x = inputs.concatenated(x, concat, self.concat_features)
            return self.network.apply({"params": params}, x, step, **options)

        return apply

    def sigma_denoiser(self, params: PyTree, **options: Any) -> SigmaDenoiser:
        """The denoiser `(y, sigma) -> x̂_0` of every noise level, not clipped.

        Raises ValueError for the target previous_mean, which has no meaning between steps.
        """
        if self.process is not None:
            network, target = self._network_of_time(params, **options), self._time_target
            return sigma_denoiser_from_process(self.process, network, target=target)
        variance = self.config.diffusion.variance
        apply_fn = self.bind(params, **options)
        return sigma_denoiser(self.schedule, apply_fn, target=self.target, variance=variance)

    def cycled_labels(self, count: int) -> np.ndarray | None:
        """The labels 0, 1, …, K-1, 0, … of `count` images; None for a network without labels."""
        return None if self.num_classes is None else np.arange(count) % self.num_classes
