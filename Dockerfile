# syntax=docker/dockerfile:1
# Two targets of one file:
#   docker build --target cpu  -t vermouth:cpu .     (also the default)
#   docker build --target cuda -t vermouth:cuda .    (PyPI's torch brings its own CUDA libraries; the host needs the driver)
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
# jemalloc keeps resident memory flat under varied image sizes; by default it returns blocks over 8 MiB at once, and
# passes would spend a fifth of their time on fresh pages (docs/adr/0029).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libjemalloc2 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 vermouth \
    && install --directory --owner=vermouth --group=vermouth /data /cache
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MALLOC_CONF=oversize_threshold:0,background_thread:true \
    OMP_WAIT_POLICY=PASSIVE \
    HF_HOME=/cache/huggingface \
    VERMOUTH_BUNDLE=/opt/vermouth/weights/mini \
    VERMOUTH_DATA_DIR=/data \
    VERMOUTH_HOST=0.0.0.0 \
    VERMOUTH_PORT=8000
WORKDIR /opt/vermouth
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY app ./app
COPY models ./models
COPY client ./client

FROM base AS cuda
RUN pip install --constraint requirements.lock --editable '.[gpu]' --editable client
COPY weights ./weights
COPY docker/entrypoint.sh /usr/local/bin/vermouth-entrypoint
COPY docker/health.py /usr/local/lib/vermouth/health.py
ENV VERMOUTH_DEVICE=cuda
USER vermouth
VOLUME /data /cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "/usr/local/lib/vermouth/health.py"]
ENTRYPOINT ["vermouth-entrypoint"]
CMD ["serve"]

FROM base AS cpu
RUN pip install --constraint requirements.lock --editable '.[cpu]' --editable client
COPY weights ./weights
COPY docker/entrypoint.sh /usr/local/bin/vermouth-entrypoint
COPY docker/health.py /usr/local/lib/vermouth/health.py
ENV VERMOUTH_DEVICE=cpu
USER vermouth
VOLUME /data /cache
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "/usr/local/lib/vermouth/health.py"]
ENTRYPOINT ["vermouth-entrypoint"]
CMD ["serve"]
