# Builds with BuildKit (Docker 23 and later, Podman). `scripts/check-container` runs these very steps without an engine.
#
#   docker build -t intermission .
#   docker run -p 8080:8080 -v intermission:/data -e INTERMISSION_JWT_SECRET=$(openssl rand -hex 32) intermission
#
# Without a secret the server refuses to start: in here it has to listen beyond its own loopback.

ARG PYTHON=3.11-slim

FROM python:${PYTHON} AS wheels
WORKDIR /build
COPY requirements.txt .
RUN python -m venv /venv && \
    /venv/bin/pip download --quiet --no-cache-dir --no-deps --require-hashes --only-binary :all: \
      --dest /wheels --requirement requirements.txt && \
    /venv/bin/pip install --quiet --upgrade --no-index --find-links /wheels setuptools
COPY . .
RUN /venv/bin/pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir /ours .

FROM python:${PYTHON}
RUN --mount=type=bind,from=wheels,source=/,target=/from \
    python -m venv /opt/intermission && \
    /opt/intermission/bin/pip install --quiet --no-cache-dir --no-deps --require-hashes \
      --no-index --find-links /from/wheels --requirement /from/build/requirements.txt && \
    /opt/intermission/bin/pip install --quiet --no-cache-dir --no-deps --no-index /from/ours/*.whl && \
    useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin intermission && \
    install --directory --owner intermission --mode 700 /data
ENV PATH=/opt/intermission/bin:$PATH \
    INTERMISSION_HOST=0.0.0.0 \
    INTERMISSION_DATA_DIR=/data
# Handler modules of your own are found here: -v ./handlers:/handlers:ro -e INTERMISSION_HANDLERS=mine
WORKDIR /handlers
VOLUME /data
EXPOSE 8080
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('INTERMISSION_PORT', '8080') + '/health')"]
# SIGTERM drains for 8 s (INTERMISSION_DRAIN_S), and `docker stop` kills after 10.
ENTRYPOINT ["intermission"]
CMD ["serve"]
