# Releases and what copies them: an init container of the pods that need them. Context: a folder of releases.
FROM debian:bookworm-slim
COPY --chown=10001:10001 . /opt/releases/
# A release appears whole: copied under a hidden name, then renamed. One that is there already stays.
CMD ["sh", "-euc", "cd /opt/releases; for r in */; do r=${r%/}; [ -e /releases/$r ] || { rm -rf /releases/.$r; cp -R $r /releases/.$r; mv /releases/.$r /releases/$r; echo $r; }; done"]
USER 10001:10001
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="trine/releases" \
      org.opencontainers.image.description="Trine: model releases, copied into /releases" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="debian:bookworm-slim"
