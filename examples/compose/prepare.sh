#!/bin/sh
# Makes what the deployment needs and what is not there yet: passwords, keys and tokens in ./secrets, ./.env, and the
# directories of the host. Run it as root (or as who may give directories to user 10001); again does no harm. By sudo,
# secrets and .env go to the user who called it: their Compose must find the one and read the other.
#
#   ./prepare.sh [DIRECTORY]      scratch and data go below DIRECTORY (/srv/tesgate)
set -eu
cd "$(dirname "$0")"
umask 077

base=${1:-/srv/tesgate}
socket=${DOCKER_SOCKET:-/var/run/docker.sock}
compose=${COMPOSE:-docker compose}

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
write() { # write FILE: from standard input, unless it is there
    [ -s "secrets/$1" ] && return
    cat >"secrets/$1.new"
    # A container's user must read it, and nobody else enters the directory.
    chmod 444 "secrets/$1.new"
    mv "secrets/$1.new" "secrets/$1"
}

mkdir -p secrets
random 24 | write postgres_password
printf 'postgresql://tesgate:%s@postgres:5432/tesgate\n' "$(cat secrets/postgres_password)" | write database_url
random 32 | write secret_key
printf 'admin:%s:admin\n' "$(random 24)" | write tokens
if [ ! -e .env ]; then
    cat >.env <<END
TESGATE_SCRATCH=$base/scratch
TESGATE_DATA=$base/data
DOCKER_SOCKET=$socket
DOCKER_GID=$(stat -c %g "$socket")
END
    chmod 644 .env # no secret is in it
fi
# shellcheck disable=SC1091
. ./.env
for directory in "$TESGATE_SCRATCH" "$TESGATE_SCRATCH/agent-1" "$TESGATE_SCRATCH/agent-2" "$TESGATE_DATA"; do
    # Others must come through what lies above, too.
    (umask 022 && mkdir -p "$directory")
    chown 10001:0 "$directory"
    chmod 755 "$directory"
done

# The agents' tokens are made by the database, which stands before anything else does. Compose wants every file to be there.
missing=
for agent in agent_1 agent_2; do
    [ -s "secrets/$agent" ] && continue
    : >"secrets/$agent"
    missing="$missing $agent"
done
[ -z "$missing" ] || $compose run --rm -T migrate migrate >&2
for agent in $missing; do
    $compose run --rm -T migrate token create "$agent" --kind agent >"secrets/$agent.new"
    chmod 444 "secrets/$agent.new"
    mv -f "secrets/$agent.new" "secrets/$agent"
done
[ -z "${SUDO_UID:-}" ] || chown -Rh "$SUDO_UID" secrets .env
