# One image for every part: `taskpool api`, `taskpool worker` and rq-dashboard.
# Your own tasks: mount them (see docker-compose.yml), or build an image FROM this one (see deploy/image).
FROM python:3.12.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/taskpool
WORKDIR /src
# The dependencies first: their layer stays while only our code changes.
COPY requirements.lock .
RUN /opt/taskpool/bin/pip install --require-hashes --requirement requirements.lock
COPY . .
RUN /opt/taskpool/bin/pip install --no-index --no-deps --no-build-isolation .
RUN /opt/taskpool/bin/pip uninstall --yes pip

FROM python:3.12.12-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin taskpool
COPY --from=build /opt/taskpool /opt/taskpool
# Two environments. The service's is root's: neither tasks nor images built FROM this one can change it. The other one
# is for packages that your tasks need, and has the pip that such an image runs. Each finds the packages of the other
# one after its own.
RUN python -m venv /opt/packages \
    && (cd /opt/taskpool/lib/python*/site-packages && echo /opt/packages/lib/python*/site-packages > packages.pth) \
    && (cd /opt/packages/lib/python*/site-packages && echo /opt/taskpool/lib/python*/site-packages > taskpool.pth) \
    && chown -R 10001:10001 /opt/packages
# The root file system may be read-only: nothing is written but to /tmp.
ENV PATH=/opt/packages/bin:/opt/taskpool/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /srv
USER 10001:10001
EXPOSE 8080
CMD ["taskpool", "api", "--host", "0.0.0.0"]
