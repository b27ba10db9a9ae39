# An S3 server with the write-once promise that the store needs (If-None-Match: *), in the version
# that the tests run against. Leave it out where you have AWS S3 or another server that
# `fedloom doctor` accepts.
#
#   docker build -f docker/s3.Dockerfile -t fedloom-s3:0.1.0 .
ARG BASE=python:3.11.14-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS install
WORKDIR /src
COPY docker/requirements/s3.txt ./
RUN python3 -m venv /opt/s3 \
 && /opt/s3/bin/pip install --no-cache-dir --no-deps --require-hashes -r s3.txt

# hadolint ignore=DL3006
FROM ${BASE}
RUN groupadd --gid 10001 fedloom \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/s3 fedloom \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/s3
COPY --from=install /opt/s3/bin/weed /usr/local/bin/weed
COPY docker/answers.py /usr/local/bin/answers
WORKDIR /var/lib/s3
USER 10001:10001
EXPOSE 8333
# Only the S3 port asks for credentials, so everything else stays on loopback. The rights of each
# key are in the file that `fedloom secrets` writes.
ENTRYPOINT ["weed", "-logtostderr=true", "server", "-dir=/var/lib/s3", "-ip=127.0.0.1", \
  "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.ip.bind=0.0.0.0", "-s3.port=8333", \
  "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.config=/run/secrets/s3.json", \
  "-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-master.electionTimeout=1s", \
  "-volume.max=0", "-volume.preStopSeconds=0"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=4 \
  CMD ["answers", "http://127.0.0.1:8333/healthz"]
