# The operator: Python, kopf, no training stack. Build from the root of the repository:
#   docker build -f k8s/images/operator.Dockerfile -t nemo-steerlm-operator .
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY nemo_steerlm ./nemo_steerlm
COPY k8s ./k8s
RUN python -m venv /opt/steerlm \
 && /opt/steerlm/bin/pip install --no-cache-dir ".[operator]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/steerlm /opt/steerlm
ENV PATH=/opt/steerlm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STEERLM_LOG_FORMAT=json
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "steerlm_operator"]
