# The worker for machines without GPUs: small models, trials, tests.
#   docker build -f k8s/images/worker-cpu.Dockerfile -t nemo-steerlm-worker:cpu .
FROM python:3.11-slim-bookworm AS build
# NeMo's dependencies with C extensions have no wheels for every platform.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y build-essential \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY nemo_steerlm ./nemo_steerlm
COPY k8s ./k8s
RUN python -m venv /opt/steerlm \
 && /opt/steerlm/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu ".[nemo,serve,report]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/steerlm /opt/steerlm
ENV PATH=/opt/steerlm/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home steerlm
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["steerlm"]
