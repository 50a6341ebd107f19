"""Training: the state, the step, devices, checkpoints and the loop. Optax and Orbax do what they do
best."""

from ddpm_jax.training.checkpoints import Checkpoints, CheckpointWriteError
from ddpm_jax.training.ema import ema_decay_at, update_ema
from ddpm_jax.training.loop import Hook, NonFiniteError, StopRequest, train_loop
from ddpm_jax.training.manifest import DamagedCheckpointError, MismatchedCheckpointError
from ddpm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from ddpm_jax.training.sharding import DataParallel, choose_devices, make_chunk
from ddpm_jax.training.state import TrainState, init_state
from ddpm_jax.training.step import make_train_step

__all__ = [
    "CheckpointWriteError",
    "Checkpoints",
    "DamagedCheckpointError",
    "DataParallel",
    "Hook",
    "MismatchedCheckpointError",
    "NonFiniteError",
    "StopRequest",
    "TrainState",
    "choose_devices",
    "ema_decay_at",
    "init_state",
    "learning_rate_schedule",
    "make_chunk",
    "make_optimizer",
    "make_train_step",
    "train_loop",
    "update_ema",
]
