# docker build -t appup:1.2.0 .
ARG DENO_VERSION=2.9.6

# Compiles on the machine that builds, for the machine that runs it.
FROM --platform=$BUILDPLATFORM docker.io/denoland/deno:${DENO_VERSION} AS compile
WORKDIR /src
COPY deno.json main.ts ./
ARG TARGETARCH
RUN case "$TARGETARCH" in \
      amd64) target=x86_64-unknown-linux-gnu ;; \
      arm64) target=aarch64-unknown-linux-gnu ;; \
      *) echo "no Deno for TARGETARCH=$TARGETARCH" >&2; exit 1 ;; \
    esac && \
    TARGET="--target $target" deno task compile
# busybox acts as the program that it is called as.
RUN mkdir bin && ln -s sh bin/cat && ln -s sh bin/touch && ln -s sh bin/rm
# Any uid may write here. It is not sticky, so the next user may remove the files of
# this one.
RUN mkdir -p volume/pod && chmod 777 volume/pod

# Tries whether the program starts on its base image, if this machine can run it.
FROM --platform=$BUILDPLATFORM docker.io/library/busybox:1.37-musl AS busybox-here
FROM --platform=$BUILDPLATFORM gcr.io/distroless/cc-debian12:nonroot AS try
COPY --from=busybox-here /bin/sh /bin/
COPY --from=compile /src/appup /usr/local/bin/
ARG BUILDARCH TARGETARCH UP_FILE=/tmp/up.txt
RUN [ "$BUILDARCH" != "$TARGETARCH" ] || \
    { appup --version && appup up && appup health; }

FROM docker.io/library/busybox:1.37-musl AS busybox

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title=appup \
      org.opencontainers.image.description="A switch in front of a pod's readiness" \
      org.opencontainers.image.version=1.2.0
# For kubectl exec … -c appup -- sh -c 'rm /pod/up.txt'
COPY --from=busybox /bin/sh /bin/
COPY --from=compile /src/bin/ /bin/
COPY --from=compile /src/volume/ /
COPY --from=try /usr/local/bin/appup /usr/local/bin/
USER 65532:65532
EXPOSE 9999
# The limit of descriptors bounds the memory that connections can take. If it is
# lower already, it stays.
ENTRYPOINT ["/bin/sh", "-c", "ulimit -n 200 2>/dev/null; exec /usr/local/bin/appup \"$@\"", "appup"]
