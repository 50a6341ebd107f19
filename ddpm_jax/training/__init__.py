"""Training: the state, the step on any number of devices, the loop, and checkpoints."""

from ddpm_jax.training.checkpoints import Checkpoints as Checkpoints
from ddpm_jax.training.checkpoints import CheckpointWriteError as CheckpointWriteError
from ddpm_jax.training.fsdp import FullySharded as FullySharded
from ddpm_jax.training.fsdp import bytes_per_step as bytes_per_step
from ddpm_jax.training.fsdp import parameter_spec as parameter_spec
from ddpm_jax.training.loop import Hook as Hook
from ddpm_jax.training.loop import NonFiniteError as NonFiniteError
from ddpm_jax.training.loop import StopRequest as StopRequest
from ddpm_jax.training.loop import train_loop as train_loop
from ddpm_jax.training.manifest import DamagedCheckpointError as DamagedCheckpointError
from ddpm_jax.training.manifest import MismatchedCheckpointError as MismatchedCheckpointError
from ddpm_jax.training.optimizer import learning_rate_schedule as learning_rate_schedule
from ddpm_jax.training.optimizer import make_optimizer as make_optimizer
from ddpm_jax.training.power_ema import post_hoc_weights as post_hoc_weights
from ddpm_jax.training.power_ema import power_ema_decay_at as power_ema_decay_at
from ddpm_jax.training.sharding import DataParallel as DataParallel
from ddpm_jax.training.sharding import choose_devices as choose_devices
from ddpm_jax.training.sharding import make_chunk as make_chunk
from ddpm_jax.training.spikes import SpikeGuard as SpikeGuard
from ddpm_jax.training.spikes import init_spike_guard as init_spike_guard
from ddpm_jax.training.state import TrainState as TrainState
from ddpm_jax.training.state import ema_decay_at as ema_decay_at
from ddpm_jax.training.state import init_state as init_state
from ddpm_jax.training.state import update_ema as update_ema
from ddpm_jax.training.step import make_train_step as make_train_step
