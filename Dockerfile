# Lethe in a container, for CPU or CUDA: docker build --build-arg ACCELERATOR=cuda -t lethe .
# docs/deployment.md says how to run it. It needs two writable places, /tmp and /data, a /dev/shm of 1 GB, and no rights.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS packages
# What to install from requirements/: `serve`, or `train` for jobs that train adapters and autoencoders too.
ARG REQUIREMENTS=serve
ARG ACCELERATOR=cpu
# The public index of CPU builds of PyTorch. Harmless when it cannot be reached; empty it to ask no one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/lethe
COPY requirements/${REQUIREMENTS}-${ACCELERATOR}.txt locked.txt
RUN python -m venv --without-pip .venv \
 && set -- python -m pip --python .venv/bin/python install --no-deps \
 && if [ "${ACCELERATOR}" = cpu ] && [ -n "${TORCH_INDEX}" ]; then \
      "$@" --retries 1 --extra-index-url "${TORCH_INDEX}" "$(grep '^torch==' locked.txt)"; fi \
 && "$@" -r locked.txt

FROM ${BASE}
ARG ACCELERATOR=cpu
LABEL org.opencontainers.image.title="Lethe" \
      org.opencontainers.image.description="A guarded vLLM server" \
      org.opencontainers.image.licenses="Apache-2.0"
# libnuma is vLLM's; on CUDA its kernels are compiled while it starts.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
 && if [ "${ACCELERATOR}" = cpu ]; then more=; else more="gcc libc6-dev"; fi \
 && apt-get install --yes --no-install-recommends libnuma1 ${more} \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin lethe \
 && install --directory --owner=lethe --group=lethe --mode=0700 /data /data/artifacts
WORKDIR /opt/lethe
# Packages apart from our own code: a new version of Lethe is a small layer.
COPY --from=packages /opt/lethe/.venv .venv
COPY pyproject.toml README.md LICENSE ./
COPY guard guard
COPY classifiers classifiers
COPY server server
COPY evals evals
COPY benchmarks benchmarks
COPY demo demo
COPY configs configs
RUN python -m pip --python .venv/bin/python install --no-cache-dir --no-deps --no-build-isolation --editable . \
 && .venv/bin/python -m compileall -q guard classifiers server evals benchmarks demo
# Whatever a library keeps for its user (models of the hub, compiled kernels) lands in the volume, as our state does.
ENV HOME=/data \
    LOGNAME=lethe \
    LETHE_DATA_DIR=/data \
    LETHE_SERVER_HOST=0.0.0.0 \
    PATH=/opt/lethe/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    VLLM_NO_USAGE_STATS=1
WORKDIR /data
VOLUME /data
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"LETHE_SERVER_PORT\") or 8000}/readyz', timeout=8)"]
ENTRYPOINT ["lethe"]
CMD ["serve", "--demo"]
