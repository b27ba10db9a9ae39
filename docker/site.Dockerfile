# A site, and the evaluation, which needs the same libraries. Without a build argument torch is the
# build for processors; for GPUs of NVIDIA take the default index:
#
#   docker build -f docker/site.Dockerfile -t fedloom-site:0.1.0 .
#   docker build -f docker/site.Dockerfile -t fedloom-site:0.1.0-cuda --build-arg TORCH_INDEX= .
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
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torch first and with what it needs, because that differs from build to build; the pinned files
# then have the last word on everything they name.
RUN python3 -m venv /opt/fedloom \
 && /opt/fedloom/bin/pip install --no-cache-dir \
      ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "torch==${TORCH}"
COPY docker/requirements/site.txt ./
RUN /opt/fedloom/bin/pip install --no-cache-dir --no-deps --require-hashes -r site.txt
COPY --from=wheel /wheels /wheels
RUN /opt/fedloom/bin/pip install --no-cache-dir --no-deps --no-index /wheels/*.whl \
 && /opt/fedloom/bin/pip uninstall --yes pip

# hadolint ignore=DL3006
FROM ${BASE}
# Owned by the user, so that a volume that is new takes over its rights.
RUN groupadd --gid 10001 fedloom \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/fedloom fedloom \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/fedloom /var/lib/fedloom/site \
 && install -d -m 0755 /opt/empty
COPY --from=install /opt/fedloom /opt/fedloom
COPY docker/with-secrets docker/worker-lives /usr/local/bin/
# A service whose working folder holds a stray tasks.py would import that one.
WORKDIR /opt/empty
ENV PATH=/opt/fedloom/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    PREFECT_HOME=/var/lib/fedloom/site/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_RESULTS_DEFAULT_SERIALIZER=json \
    PREFECT_RESULTS_PERSIST_BY_DEFAULT=false \
    PREFECT_CLI_PROMPT=false
USER 10001:10001
ENTRYPOINT ["with-secrets"]
CMD ["fedloom", "site", "start", "--home", "/var/lib/fedloom/site"]
HEALTHCHECK --interval=60s --timeout=10s --start-period=120s --retries=3 CMD ["worker-lives"]
