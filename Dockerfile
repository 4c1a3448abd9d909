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
    && mkdir -p /models /state /etc/superdiff \
    && chown superdiff /models /state
COPY --from=build /opt/superdiff /opt/superdiff
COPY superdiff.toml /etc/superdiff/superdiff.toml
ENV PATH=/opt/superdiff/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models/huggingface \
    SUPERDIFF_HOST=0.0.0.0 \
    SUPERDIFF_PORT=8000 \
    SUPERDIFF_STATE=/state \
    SUPERDIFF_CATALOG=/etc/superdiff/superdiff.toml
USER superdiff
WORKDIR /home/superdiff
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["superdiff", "serve"]
