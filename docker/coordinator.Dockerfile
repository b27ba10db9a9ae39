# The coordinator's side: gateway, campaigns, Prefect server, MLflow server; the command decides.
# One image, because all of them need Prefect or MLflow in the same pinned versions, and because
# upstream's images do not fit: MLflow's has no way to PostgreSQL or S3, and Prefect's takes a
# fastapi under which its own lists answer 422. It has no torch.
#
#   docker build -f docker/coordinator.Dockerfile -t fedloom-coordinator:0.1.0 .
ARG BASE=python:3.11.14-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS wheel
WORKDIR /src
COPY docker/requirements/build.txt ./
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY fl_core ./fl_core
COPY tasks ./tasks
COPY flows ./flows
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# hadolint ignore=DL3006
FROM ${BASE} AS install
WORKDIR /src
COPY docker/requirements/coordinator.txt ./
RUN python3 -m venv /opt/fedloom \
 && /opt/fedloom/bin/pip install --no-cache-dir --no-deps --require-hashes -r coordinator.txt
COPY --from=wheel /wheels /wheels
RUN /opt/fedloom/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
 && /opt/fedloom/bin/pip uninstall --yes pip

# hadolint ignore=DL3006
FROM ${BASE}
# Owned by the user, so that a volume that is new takes over its rights.
RUN groupadd --gid 10001 fedloom \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/fedloom fedloom \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/fedloom \
 && install -d -m 0755 /opt/empty
COPY --from=install /opt/fedloom /opt/fedloom
COPY docker/with-secrets /usr/local/bin/
COPY docker/answers.py /usr/local/bin/answers
# A service whose working folder holds a stray tasks.py would import that one.
WORKDIR /opt/empty
ENV PATH=/opt/fedloom/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    FEDLOOM_HOME=/var/lib/fedloom \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/tmp/prefect-ui \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_RESULTS_DEFAULT_SERIALIZER=json \
    PREFECT_RESULTS_PERSIST_BY_DEFAULT=false \
    PREFECT_CLI_PROMPT=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_ENABLE_AI_GATEWAY=false \
    MLFLOW_ENABLE_REMOTE_ASSISTANT=false
USER 10001:10001
EXPOSE 8443
ENTRYPOINT ["with-secrets"]
CMD ["fedloom", "gateway", "start", "--host", "0.0.0.0", "--port", "8443"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
  CMD ["answers", "https://127.0.0.1:8443/health"]
