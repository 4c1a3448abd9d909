# docker build -t superdiff-serve .
#
# torch's own wheels for Linux carry CUDA, so a slim base and the NVIDIA container runtime suffice. For a build of torch
# without CUDA, or for another version of it, name PyTorch's index for that: --build-arg TORCH_INDEX=…
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/superdiff
# What changes seldom comes first: a change of the source installs neither torch nor the other libraries anew.
COPY pyproject.toml constraints.txt ./
RUN /opt/superdiff/bin/pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
RUN /opt/superdiff/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['otel'], *p['optional-dependencies']['s3'], sep='\n')" > requirements.txt \
    && /opt/superdiff/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY pipelines pipelines
COPY evaluation evaluation
COPY service service
RUN /opt/superdiff/bin/pip install --no-cache-dir --no-deps .

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="superdiff-serve" \
      org.opencontainers.image.description="Compose pretrained diffusion models over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --create-home --uid 10001 superdiff \
    && mkdir -p /models /var/lib/superdiff /etc/superdiff \
    && chown superdiff /models /var/lib/superdiff
COPY --from=build /opt/superdiff /opt/superdiff
COPY superdiff.toml /etc/superdiff/superdiff.toml
# Nothing is written but below /models, /var/lib/superdiff and /tmp: the root file system may be read-only.
ENV PATH=/opt/superdiff/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/models/compiled \
    MPLCONFIGDIR=/tmp/matplotlib \
    SUPERDIFF_HOST=0.0.0.0 \
    SUPERDIFF_PORT=8000 \
    SUPERDIFF_LOG_FORMAT=json \
    SUPERDIFF_STATE=/var/lib/superdiff \
    SUPERDIFF_CATALOG=/etc/superdiff/superdiff.toml
# Others reach a container: it starts once there is an API key, or with SUPERDIFF_ALLOW_ANYONE=true.
#   docker run --rm -v superdiff-state:/var/lib/superdiff superdiff-serve superdiff keys create me
VOLUME ["/models", "/var/lib/superdiff"]
USER superdiff
WORKDIR /home/superdiff
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['SUPERDIFF_PORT'] + '/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["superdiff"]
CMD ["serve"]
