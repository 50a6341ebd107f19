"""One of several processes that train: python -m tests.train_one_of CONFIG ADDRESS COUNT ID."""

import dataclasses
import json
import sys
from pathlib import Path

from ddpm_jax.programs.config import DistributedConfig, TrainConfig
from ddpm_jax.programs.config_values import from_json
from ddpm_jax.programs.train import train

if __name__ == "__main__":
    config = from_json(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))
    together = DistributedConfig(
        coordinator=sys.argv[2],
        num_processes=int(sys.argv[3]),
        process_id=int(sys.argv[4]),
        heartbeat_seconds=60,
    )
    train(dataclasses.replace(config, distributed=together))
