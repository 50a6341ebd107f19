# docker build -t ddpm_jax .                                  for CPUs
# docker build -t ddpm_jax --build-arg EXTRA='[cuda12]' .     for NVIDIA GPUs; run with --gpus all
# docker run --rm -v "$PWD/runs:/data/runs" ddpm_jax train digits
FROM python:3.12-slim
ARG EXTRA=""
WORKDIR /opt/ddpm_jax
COPY . .
RUN pip install --no-cache-dir -c requirements.txt ".${EXTRA}"
WORKDIR /data
ENTRYPOINT ["ddpm-jax"]
CMD ["list"]
