# The operator: Python, kopf, no training stack. Build from the root of the repository:
#   docker build -f k8s/images/operator.Dockerfile -t nemo-steerlm-operator:0.1.0 .
# A digest keeps the base from moving: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY nemo_steerlm ./nemo_steerlm
COPY k8s/steerlm_operator ./k8s/steerlm_operator
RUN python -m venv /opt/steerlm \
 && /opt/steerlm/bin/pip install --no-cache-dir --constraint constraints.txt ".[operator]"

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/steerlm /opt/steerlm
ENV PATH=/opt/steerlm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STEERLM_LOG_FORMAT=json
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "steerlm_operator"]
