#!/bin/sh
# Install what the beds need, as far as this machine lets us; say what is missing. Never fails: a bed that cannot
# stand says so itself, and where it is required (TESGATE_REQUIRE_BEDS) that is a failing test.
set -u

say() { printf 'beds: %s\n' "$*" >&2; }

missing=""
need() { # need PROGRAM PACKAGE, each by itself: none counts as there because another one is
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
need dockerd docker.io
# The engine's bridge needs it, and --no-install-recommends leaves it out.
need iptables iptables
need bwrap bubblewrap
need mmdebstrap mmdebstrap
need busybox busybox-static
need mount mount
need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
need qemu-aarch64-static qemu-user-static
need docker-compose docker-compose
need systemd-analyze systemd
[ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing="$missing libc6-dev-arm64-cross"
need newuidmap uidmap
need podman podman
# The same for Podman's networks; and of the OCI runtimes only runc runs on control groups of version 1.
need runc runc
need /usr/lib/podman/netavark netavark
need /usr/lib/podman/aardvark-dns aardvark-dns
need slirp4netns slirp4netns
need fuse-overlayfs fuse-overlayfs
need nsenter util-linux
need ip iproute2
need openssl openssl

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "not installed, and only root may install them:$missing"
    elif ! command -v apt-get >/dev/null 2>&1; then
        say "not installed, and there is no apt-get:$missing"
    else
        say "installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        log=$(mktemp)
        apt-get update -qq >"$log" 2>&1 || say "apt-get update failed: $(tail -n 1 "$log")"
        install() {
            apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1 </dev/null
        }
        # All at once, which is quicker; else one by one, so that one that cannot be had takes no other along.
        # shellcheck disable=SC2086
        install $missing || for package in $missing; do
            install "$package" || say "$package cannot be installed: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
        done
        rm -f "$log"
    fi
fi
exit 0
