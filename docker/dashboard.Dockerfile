# rq-dashboard: queues, jobs and workers in a browser.
FROM python:3.11-slim-bookworm
COPY requirements.txt .
# The same rq and redis as the worker's. rq-dashboard 0.9.0 imports six and does not ask for it.
RUN pip install --no-cache-dir --disable-pip-version-check --constraint requirements.txt \
        rq-dashboard==0.9.0 rq redis six==1.17.0 Flask==3.1.3 arrow==1.4.0 Redis-Sentinel-Url==1.0.1 \
    && useradd --uid 10001 --create-home dashboard
ENV PYTHONUNBUFFERED=1
USER dashboard
WORKDIR /home/dashboard
EXPOSE 9181
COPY docker/dashboard.py /opt/dashboard.py
ENTRYPOINT ["python", "/opt/dashboard.py"]
