# One image for every part: `taskpool api`, `taskpool worker` and rq-dashboard.
# Your own tasks: FROM taskpool, COPY your package, set TASKPOOL_TASKS; or mount them (see docker-compose.yml).
FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/taskpool
WORKDIR /src
# The dependencies first: their layer stays while only our code changes.
COPY requirements.lock .
RUN /opt/taskpool/bin/pip install --require-hashes --requirement requirements.lock
COPY . .
RUN /opt/taskpool/bin/pip install --no-index --no-deps --no-build-isolation .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin taskpool
COPY --from=build /opt/taskpool /opt/taskpool
# The root file system may be read-only: nothing is written but to /tmp.
ENV PATH=/opt/taskpool/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
USER 10001:10001
EXPOSE 8080
CMD ["taskpool", "api", "--host", "0.0.0.0"]
