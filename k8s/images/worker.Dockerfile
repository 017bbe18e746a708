# The worker with NVIDIA's NeMo image under it: trainings on GPUs, servers, every other stage.
#   docker build -f k8s/images/worker.Dockerfile -t nemo-steerlm-worker .
ARG NEMO_IMAGE=nvcr.io/nvidia/nemo:25.07
FROM ${NEMO_IMAGE}
WORKDIR /opt/nemo_steerlm
COPY pyproject.toml README.md LICENSE ./
COPY nemo_steerlm ./nemo_steerlm
COPY k8s ./k8s
# NeMo, Megatron and torch are the image's own; pip must not touch them.
RUN pip install --no-cache-dir --no-deps . \
 && pip install --no-cache-dir httpx msgspec stamina typer fastapi uvicorn prometheus-client gradio vaderSentiment==3.3.2 \
 && useradd --uid 1000 --create-home steerlm
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["steerlm"]
