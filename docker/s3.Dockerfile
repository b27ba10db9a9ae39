# An S3 server with the write-once promise that the store needs (If-None-Match: *), in the version
# that the tests run against. Leave it out where you have AWS S3 or another server that
# `fedloom doctor` accepts. Only the S3 port asks for S3 keys, so everything else stays on loopback or
# asks for a certificate; the rights of each key are in the file that `fedloom secrets` writes.
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
COPY docker/serve-s3 /usr/local/bin/serve-s3
COPY docker/answers.py /usr/local/bin/answers
COPY docker/security.toml /etc/seaweedfs/security.toml
WORKDIR /var/lib/s3
USER 10001:10001
EXPOSE 8333
ENTRYPOINT ["serve-s3"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=4 \
  CMD ["answers", "http://127.0.0.1:8333/healthz"]
