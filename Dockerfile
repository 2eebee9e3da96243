# One image for peers and bootstraps. docs/docker.md says how to use it; docker-compose.yml does.
#
#   docker build -t waggle .
#   docker run --rm waggle --help
#
# No "syntax" line: it would fetch a frontend from a registry, and nothing here needs one newer than Docker 20.10's own.

ARG PYTHON_IMAGE=python:3.11-slim

# -- what Waggle stands on: changes with the pins only, not with the source --------------------------------------------
FROM ${PYTHON_IMAGE} AS dependencies
# PyPI's torch brings some GB of CUDA. This index has the same version without ("2.13.0+cpu", which pip prefers to
# "2.13.0"). Empty takes PyPI's. Where the index cannot be reached, pip says so and takes what it finds elsewhere.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What pip installs beside the core: "hub" streams data sets. Empty leaves it out.
ARG EXTRAS=hub
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Without pip: the environment is filled from outside, and nothing in it can install anything later.
RUN python -m venv --without-pip /opt/waggle
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/waggle/bin/python install -c constraints.txt --no-deps --retries 1 \
      ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torch
COPY pyproject.toml ./
# pip cannot install "all that a project needs, but not the project", so the list is taken out of pyproject.toml.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "\
import sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *(one for name in sys.argv[1:] for one in extras[name]), sep='\n') \
" ${EXTRAS} > needed.txt \
 && pip --python /opt/waggle/bin/python install -c constraints.txt -r needed.txt
# Nothing is compiled or tested in a container: the libraries' headers and tests stay behind, 0.3 GB.
RUN cd /opt/waggle/lib/python3*/site-packages \
 && rm -rf torch/include torch/test torch/bin/protoc* torch/bin/*[Tt]est* pyarrow/include \
 && find . -depth -type d -name tests -exec rm -rf {} +

# -- Waggle itself, as a wheel -----------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY swarm swarm
COPY bootstrap bootstrap
COPY peer peer
COPY waggle waggle
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheel .

# -- what runs ---------------------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}
# tini is process 1 and passes signals on. Without it we would be, for whom no signal has its default action, and who
# would have to reap the children of others.
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
# A number that no host is likely to use. Empty named volumes take the owner of the folder they are mounted on.
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin waggle \
 && install -d -o waggle -g waggle -m 0750 /data \
 && install -d -o waggle -g waggle -m 0755 /introduction
COPY --from=dependencies /opt/waggle /opt/waggle
COPY runs /waggle/runs
RUN --mount=type=bind,from=wheel,source=/wheel,target=/mnt \
    pip --python /opt/waggle/bin/python install --no-cache-dir --no-deps --no-index /mnt/*.whl

# HTTP is served to the container's network; who else may reach it is decided where the port is published. Everything
# that must outlive the container is in /data.
ENV PATH=/opt/waggle/bin:${PATH} \
    WAGGLE_DATA_DIR=/data \
    WAGGLE_HTTP=0.0.0.0:8080 \
    WAGGLE_BOOTSTRAP_IDENTITY=/data/bootstrap.key \
    WAGGLE_BOOTSTRAP_HTTP=0.0.0.0:8081 \
    HF_HOME=/data/huggingface
USER 10001:10001
WORKDIR /waggle
VOLUME /data
EXPOSE 8080 8081 31337 31338
STOPSIGNAL SIGTERM
# A peer answers at 8080, a bootstrap at 8081. http.client, not urllib.request, which would ask a proxy of the
# environment about our own loopback; -I -S, no site-packages, so that a check costs milliseconds. A peer imports torch
# before it answers, which takes long on a busy machine: hence the start period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 CMD ["python", "-I", "-S", "-c", "\
import http.client, socket, sys; \
port = 8081 if socket.socket().connect_ex(('127.0.0.1', 8080)) else 8080; \
connection = http.client.HTTPConnection('127.0.0.1', port, timeout=4); \
connection.request('GET', '/healthz'); \
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--", "waggle"]
CMD ["peer"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="waggle" \
      org.opencontainers.image.description="A peer-to-peer daemon for training models together" \
      org.opencontainers.image.source="https://github.com/waggle-swarm/waggle" \
      org.opencontainers.image.documentation="https://github.com/waggle-swarm/waggle/blob/main/docs/docker.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
