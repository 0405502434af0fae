# The service as a container image: docs/CONTAINER.md tells how to build, run and prove it.
#
# The base is the same for everybody, whatever its tag says later, on amd64 and arm64 alike. A release takes the newest:
# https://github.com/docker-library/repo-info/blob/master/repos/debian/remote/bookworm-slim.md has it, and so has
# `docker buildx imagetools inspect debian:bookworm-slim`. What Debian has mended since then is installed below.
ARG BASE=debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251

# What compiles, and what is compiled: nothing of this stage is in the result but /opt/deviceon-backup and a public key.
FROM ${BASE} AS builder
SHELL ["/bin/sh", "-eux", "-c"]
WORKDIR /build
# Debian's packages are not pinned: a version that a security fix replaced could not be had any more.
# hadolint ignore=DL3008
RUN apt-get update; \
    apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev libtss2-dev pkg-config python3-dev python3-venv; \
    # The key of the PostgreSQL project's packages, from a package that Debian has signed.
    apt-get download postgresql-common; \
    dpkg-deb --extract postgresql-common_*.deb /build/pgdg; \
    rm -rf /var/lib/apt/lists/*
# Without debugging information, which names the directory of the day: the same source gives the same bytes.
ENV CFLAGS=-g0
# Builds are not isolated: an isolated one fetches what is newest today. The tools that build do not go into the result.
COPY requirements-build.txt requirements.txt requirements-portal.txt requirements-sftp.txt ./
RUN python3 -m venv /build/tools; \
    /build/tools/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --requirement requirements-build.txt
# "no" leaves out what the portal needs (`deviceon-backup portal`); "yes" adds what sftp:// targets need.
ARG PORTAL=yes
ARG SFTP=no
# hadolint ignore=SC2086
RUN case "${PORTAL}" in yes) more="--requirement requirements-portal.txt" ;; no) more= ;; *) exit 2 ;; esac; \
    case "${SFTP}" in yes) more="${more} --requirement requirements-sftp.txt" ;; no) ;; *) exit 2 ;; esac; \
    /build/tools/bin/pip wheel --no-cache-dir --disable-pip-version-check --require-hashes --no-build-isolation \
        --wheel-dir /build/wheels --requirement requirements.txt ${more}
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY storage_backends ./storage_backends
# Compiled ahead, since the root file system is read-only; by content, so that the same files give the same bytes.
RUN /build/tools/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-build-isolation --no-deps \
        --wheel-dir /build/wheels .; \
    python3 -m venv --without-pip /opt/deviceon-backup; \
    /build/tools/bin/pip --python /opt/deviceon-backup/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-index --no-deps --no-compile /build/wheels/*.whl; \
    # Babel knows a thousand locales in 35 MB; the portal speaks these languages.
    find /opt/deviceon-backup/lib -path '*/babel/locale-data/*.dat' \
        ! -name 'root.dat' ! -name 'en*.dat' ! -name 'zh*.dat' -delete; \
    /opt/deviceon-backup/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        /opt/deviceon-backup/lib

FROM ${BASE}
SHELL ["/bin/sh", "-eux", "-c"]
# Majors of PostgreSQL whose clients are installed from the PostgreSQL project's packages; "debian" takes the one of
# Debian itself, for networks that have nothing else.
ARG POSTGRESQL_CLIENTS="14 15 16 17 18"
COPY --from=builder /build/pgdg/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc /usr/share/keyrings/
# libtss2-tcti-swtpm0 (40 kB) lets the image be tried where there is no TPM. tini reaps what hooks leave behind.
# hadolint ignore=DL3008,SC2086
RUN mkdir -p /usr/share/man/man1 /usr/share/man/man7; \
    apt-get update; \
    apt-get upgrade -y --no-install-recommends; \
    apt-get install -y --no-install-recommends \
        ca-certificates python3 tini \
        libtss2-esys-3.0.2-0 libtss2-fapi1 libtss2-mu0 libtss2-rc0 libtss2-sys1 libtss2-tctildr0 \
        libtss2-tcti-device0 libtss2-tcti-swtpm0; \
    if [ "${POSTGRESQL_CLIENTS}" = debian ]; then \
        clients=postgresql-client; \
    else \
        . /etc/os-release; \
        key=/usr/share/keyrings/apt.postgresql.org.asc; \
        echo "deb [signed-by=${key}] https://apt.postgresql.org/pub/repos/apt ${VERSION_CODENAME}-pgdg main" \
            >/etc/apt/sources.list.d/pgdg.list; \
        apt-get update; \
        clients=; \
        for major in ${POSTGRESQL_CLIENTS}; do clients="${clients} postgresql-client-${major}"; done; \
    fi; \
    apt-get install -y --no-install-recommends ${clients}; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
        /var/log/alternatives.log /usr/lib/udev/hwdb.* /usr/share/doc/*/changelog* /usr/share/man /usr/share/info
# The number is fixed: volumes belong to it, and Kubernetes wants a number to see that it is not root. Nothing here has to
# become anybody else.
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} +; \
    groupadd --gid 10001 deviceon-backup; \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/deviceon-backup \
        --shell /usr/sbin/nologin deviceon-backup; \
    install -d -m 0755 /etc/deviceon-backup; \
    install -d -m 0700 -o 10001 -g 10001 /var/lib/deviceon-backup; \
    install -d -m 0750 -o 10001 -g 10001 /run/deviceon-backup
COPY --from=builder /opt/deviceon-backup /opt/deviceon-backup
COPY packaging/image/healthcheck.py /opt/deviceon-backup/healthcheck.py

# One arena of malloc: 8 MiB less at the peak for 2 % more time, and no growth with a node's cores.
ENV PATH=/opt/deviceon-backup/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    MALLOC_ARENA_MAX=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG BASE
LABEL org.opencontainers.image.title="DeviceOn Backup" \
      org.opencontainers.image.description="Scheduled, TPM-sealed backup and safe restore of a DeviceOn server" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"

USER 10001:10001
WORKDIR /var/lib/deviceon-backup
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["/opt/deviceon-backup/bin/python", "-I", "/opt/deviceon-backup/healthcheck.py"]
# No VOLUME: state in an unnamed volume would be lost unnoticed, and a mount that is missing is told at once.
ENTRYPOINT ["/usr/bin/tini", "-s", "--", "deviceon-backup"]
CMD ["serve"]
