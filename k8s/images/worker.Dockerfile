# The worker with NVIDIA's NeMo image under it: trainings on GPUs, servers, every other stage. Build from the root of the repository:
#   docker build -f k8s/images/worker.Dockerfile -t nemo-steerlm-worker:0.1.0 .
ARG NEMO_IMAGE=nvcr.io/nvidia/nemo:25.07

FROM ${NEMO_IMAGE}
WORKDIR /opt/nemo_steerlm
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY nemo_steerlm ./nemo_steerlm
COPY k8s/steerlm_operator ./k8s/steerlm_operator
# NeMo, Megatron, torch and what those need are the image's own, which pip must not touch; the rest comes in the versions that were tested.
RUN grep -E "^(fastapi|gguf|httpx|ijson|msgspec|prometheus-client|pyphen|stamina|typer|uvicorn|vadersentiment)==" constraints.txt > own.txt \
 && pip install --no-cache-dir --requirement own.txt \
 && pip install --no-cache-dir --no-deps .
# A base on Ubuntu 24.04 has a user 1000 already.
RUN getent passwd 1000 || useradd --uid 1000 --create-home steerlm
ENV PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["steerlm"]
