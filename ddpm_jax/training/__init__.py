"""Training: the state, the step on any number of devices, the loop, and checkpoints."""

from ddpm_jax.training.checkpoints import Checkpoints, CheckpointWriteError
from ddpm_jax.training.fsdp import FullySharded, bytes_per_step, parameter_spec
from ddpm_jax.training.loop import Hook, NonFiniteError, StopRequest, train_loop
from ddpm_jax.training.manifest import DamagedCheckpointError, MismatchedCheckpointError
from ddpm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from ddpm_jax.training.power_ema import post_hoc_weights, power_ema_decay_at
from ddpm_jax.training.sharding import DataParallel, choose_devices, make_chunk
from ddpm_jax.training.spikes import SpikeGuard, init_spike_guard
from ddpm_jax.training.state import TrainState, ema_decay_at, init_state, update_ema
from ddpm_jax.training.step import make_train_step

__all__ = [
    "CheckpointWriteError",
    "Checkpoints",
    "DamagedCheckpointError",
    "DataParallel",
    "FullySharded",
    "Hook",
    "MismatchedCheckpointError",
    "NonFiniteError",
    "SpikeGuard",
    "StopRequest",
    "TrainState",
    "bytes_per_step",
    "choose_devices",
    "ema_decay_at",
    "init_spike_guard",
    "init_state",
    "learning_rate_schedule",
    "make_chunk",
    "make_optimizer",
    "make_train_step",
    "parameter_spec",
    "post_hoc_weights",
    "power_ema_decay_at",
    "train_loop",
    "update_ema",
]
