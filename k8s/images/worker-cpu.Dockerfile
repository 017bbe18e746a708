# The worker for machines without GPUs: small models, trials, tests. Build from the root of the repository:
#   docker build -f k8s/images/worker-cpu.Dockerfile -t nemo-steerlm-worker:0.1.0-cpu .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# NeMo's dependencies with C extensions have no wheels for every platform.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y build-essential \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY nemo_steerlm ./nemo_steerlm
COPY k8s/steerlm_operator ./k8s/steerlm_operator
RUN python -m venv /opt/steerlm \
 && /opt/steerlm/bin/pip install --no-cache-dir --constraint constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu ".[nemo,serve,report]"

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/steerlm /opt/steerlm
ENV PATH=/opt/steerlm/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home steerlm
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["steerlm"]
