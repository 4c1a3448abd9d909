# GPU-ready: torch's Linux wheels carry their CUDA libraries, so a slim base and the NVIDIA container runtime suffice.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipelines pipelines
COPY evaluation evaluation
COPY service service
RUN python -m venv /opt/superdiff \
    && /opt/superdiff/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 superdiff \
    && mkdir -p /models /etc/superdiff /var/lib/superdiff \
    && chown superdiff /models /var/lib/superdiff
COPY --from=build /opt/superdiff /opt/superdiff
COPY superdiff.toml /etc/superdiff/superdiff.toml
ENV PATH=/opt/superdiff/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/huggingface \
    SUPERDIFF_HOST=0.0.0.0 \
    SUPERDIFF_PORT=8000 \
    SUPERDIFF_STATE=/var/lib/superdiff \
    SUPERDIFF_CATALOG=/etc/superdiff/superdiff.toml
# Others reach a container: it starts once there is an API key, or with SUPERDIFF_ALLOW_ANYONE=true.
#   docker run --rm -v superdiff-state:/var/lib/superdiff superdiff-serve superdiff keys create me
VOLUME /var/lib/superdiff
USER superdiff
WORKDIR /home/superdiff
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["superdiff", "serve"]
