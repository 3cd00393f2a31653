# docker build -t appup:1.2.0 .
ARG DENO_VERSION=2.9.6

# Compiles on the machine that builds, for the one that will run it.
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
# busybox is what it is called: three links, not three more copies of it.
RUN mkdir bin && ln -s sh bin/cat && ln -s sh bin/touch && ln -s sh bin/rm
# For any uid: OpenShift's, a tmpfs' or 65532. Not sticky: who runs it next may
# have another one, and has to remove this one's file.
RUN mkdir -p volume/pod && chmod 777 volume/pod

# Makes sure that it starts, on what it will live on, if this machine can tell.
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
# Descriptors are the only bound on what connections can cost, and a compiled
# program keeps the limit that it finds. One that is lower already stays.
ENTRYPOINT ["/bin/sh", "-c", "ulimit -n 200 2>/dev/null; exec /usr/local/bin/appup \"$@\"", "appup"]
