"""`python -m ddpm_jax` is the command `ddpm-jax`."""

from ddpm_jax.programs.cli import main

if __name__ == "__main__":
    main()
