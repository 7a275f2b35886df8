# rq-dashboard: queues, jobs and workers in a browser.
FROM python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b
COPY docker/dashboard.requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r dashboard.requirements.txt \
    && useradd --uid 10001 --create-home dashboard
ENV PYTHONUNBUFFERED=1
USER dashboard
WORKDIR /home/dashboard
EXPOSE 9181
COPY docker/dashboard.py /opt/dashboard.py
ENTRYPOINT ["python", "/opt/dashboard.py"]
