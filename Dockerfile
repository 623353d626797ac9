# syntax=docker/dockerfile:1

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package onlyonce-gateway \
    && install -D target/release/onlyonce /out/onlyonce

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin onlyonce \
    && install -d -o onlyonce -g onlyonce -m 0700 /data
COPY --from=build /out/onlyonce /usr/local/bin/onlyonce
USER onlyonce
# Where the embedded store is, as ./onlyonce-data, unless store.url says otherwise.
WORKDIR /data
VOLUME /data
EXPOSE 8787
STOPSIGNAL SIGTERM
# Inside a container the gateway must listen beyond loopback, where callers without a credential
# are refused by default. The control listener stays on loopback: `docker exec` reaches it.
ENTRYPOINT ["onlyonce"]
CMD ["serve", "--config", "/etc/onlyonce/onlyonce.toml", "--listen", "0.0.0.0:8787"]
