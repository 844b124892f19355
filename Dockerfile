# The daemon (and the command) without torch: trainers bring their own. Build and run:
#     docker build -t ckptd .
#     docker run --shm-size=8g -v ckptd-run:/run/ckptd -v ckptd-state:/var/lib/ckptd ckptd
# Containers that mount both volumes at the same paths use this daemon by themselves. Their
# processes run as uid 10001 too, or are named in CKPTD_ALLOW_UIDS. Staged saves live in this
# container's /dev/shm, hence --shm-size.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY proto proto
COPY client client
COPY daemon daemon
RUN python -m venv /opt/ckptd \
    && /opt/ckptd/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:${PYTHON_VERSION}-slim
RUN groupadd --gid 10001 ckptd \
    && useradd --uid 10001 --gid ckptd --home-dir /var/lib/ckptd --shell /usr/sbin/nologin ckptd \
    && install -d -o ckptd -g ckptd -m 0755 /run/ckptd /var/lib/ckptd
COPY --from=build /opt/ckptd /opt/ckptd
ENV PATH=/opt/ckptd/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    CKPTD_SOCKET=/run/ckptd/ckptd.sock \
    CKPTD_STATE_DIR=/var/lib/ckptd \
    CKPTD_AUTOSTART=0
VOLUME ["/run/ckptd", "/var/lib/ckptd"]
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["ckptd", "status"]
# SIGTERM lets work finish for drain_s (25 s): stop with a grace of 30 s or more.
STOPSIGNAL SIGTERM
ENTRYPOINT ["ckptd", "serve"]
