# syntax=docker/dockerfile:1
# The daemon alone, for ECS and any other place that runs containers: one binary on a distroless
# base, no shell, not root, nothing written to its file system. `tests/image/run` stages this file
# without an engine, line by line, and runs what comes of it.

FROM rust:1.95-bookworm AS build
WORKDIR /build

# Dependencies by themselves: this layer is built again only when they change. The manifest names
# every target's file, so it loads without the examples and tests, which are not sent here.
COPY Cargo.toml Cargo.lock ./
COPY src/embedded/eventstore/Cargo.toml src/embedded/eventstore/
RUN mkdir -p src/embedded/eventstore/src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs src/embedded/eventstore/src/lib.rs \
    && cargo build --release --locked -p projector --bin projector --no-default-features --features daemon,jemalloc,otel \
    && rm -rf src target/release/projector target/release/deps/projector-* \
        target/release/deps/libprojector-* target/release/.fingerprint/projector-*

COPY src src
# The symbols are kept aside: see the stage below.
RUN cargo build --release --locked -p projector --bin projector --no-default-features --features daemon,jemalloc,otel \
    && objcopy --only-keep-debug target/release/projector /projector.debug \
    && objcopy --strip-all --add-gnu-debuglink=/projector.debug target/release/projector /projector

# Not in the image: `docker build --target symbols --output symbols .` writes them beside it, and a
# backtrace or a core of the same build is read with `gdb -s symbols/projector.debug`.
FROM scratch AS symbols
COPY --from=build /projector.debug /projector.debug

# C runtime and CA certificates, and nothing else.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="projector" \
      org.opencontainers.image.description="Versioned read replicas of EventStoreDB streams in DynamoDB" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

WORKDIR /app
COPY --from=build /projector /app/projector
COPY config/default.toml config/docker.toml /app/config/
ENV PROJECTOR_ENV=docker

USER nonroot:nonroot
EXPOSE 9464
# Drains what is held; ECS sends the same signal, and kills after its stop timeout.
STOPSIGNAL SIGTERM
# Alive, not ready: an unavailable store is no reason to be replaced.
HEALTHCHECK --interval=10s --timeout=4s --start-period=15s --retries=3 CMD ["/app/projector", "health"]
ENTRYPOINT ["/app/projector"]
CMD ["run"]
