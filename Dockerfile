# docker build -t appup:1.0.0 .
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
RUN mkdir pod bin && ln -s sh bin/cat && ln -s sh bin/touch && ln -s sh bin/rm

FROM docker.io/library/busybox:1.37-musl AS busybox

FROM gcr.io/distroless/cc-debian12:nonroot
# For kubectl exec … -c appup -- sh -c 'rm /pod/up.txt'
COPY --from=busybox /bin/sh /bin/
COPY --from=compile /src/bin/ /bin/
COPY --from=compile --chown=65532:65532 /src/pod/ /pod/
COPY --from=compile /src/appup /usr/local/bin/
USER 65532:65532
EXPOSE 9999
ENTRYPOINT ["/usr/local/bin/appup"]
