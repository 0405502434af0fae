#!/bin/sh
# Restores the server from one archive: asks for its path, and ends with exactly
#
#     Restore successfully
#
# Usage: recovery.sh [ARCHIVE] [options of `deviceon-backup recover`]
#
#     --archive PATH_OR_URL      the archive, instead of being asked for it
#     --config FILE              a configuration other than /etc/deviceon-backup/config.yaml
#     --yes                      ask nothing: for scripts
#
# With a configuration (/etc/deviceon-backup/config.yaml, or $DEVICEON_BACKUP_CONFIG) nothing else is needed. Without
# one, on a new machine, say where PostgreSQL is and which version of the server is installed; on a terminal what is
# missing is asked for:
#
#     PGHOST PGPORT PGUSER PGPASSWORD or PGPASSFILE     as for psql; the role must be a superuser
#     DEVICEON_BACKUP_SERVER_VERSION                    for example 5.3.12
#
# Where the service runs in a container, DEVICEON_BACKUP_CONTAINER names it: this runs inside of it, and paths are the
# container's. DOCKER is the program for that (docker).
#
# docs/RECOVERY.md is the whole story. The exit code is that of `deviceon-backup restore` (docs/CLI.md): 0 only when
# everything was restored.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
project=$(dirname -- "$(dirname -- "$here")")

fail() { # MESSAGE REMEDY
    printf 'error: %s\n  what to do: %s\n' "$1" "$2" >&2
    exit 1
}

case ${1-} in
-h | --help)
    sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit 0
    ;;
esac

if [ -n "${DEVICEON_BACKUP_CONTAINER-}" ]; then
    terminal=
    [ -t 0 ] && terminal=t
    exec "${DOCKER:-docker}" exec "-i$terminal" "$DEVICEON_BACKUP_CONTAINER" deviceon-backup recover "$@"
fi
# The program as it is installed (sudo keeps no PATH), else that of the environment beside, else its source beside.
if command -v deviceon-backup >/dev/null 2>&1; then
    exec deviceon-backup recover "$@"
fi
for program in /opt/deviceon-backup/bin/deviceon-backup "$project/.venv/bin/deviceon-backup"; do
    if [ -x "$program" ]; then
        exec "$program" recover "$@"
    fi
done
[ -d "$project/service/cli" ] ||
    fail 'deviceon-backup is not installed, and its source is not beside this script' \
        'Copy the whole project here, not only its tools; then run this again.'
command -v python3 >/dev/null 2>&1 ||
    fail 'Python is not installed' \
        'apt-get install python3 python3-venv (or the same of your system); it takes Python 3.11 or newer.'
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$(python3 --version) is too old" 'Install Python 3.11 or newer; then run this again.'
PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
missing=$(python3 -c '
import importlib.util as u
names = "click", "pydantic", "rich", "yaml", "zstandard", "cryptography", "asyncpg", "tpm2_pytss", "fsspec"
print(*(name for name in names if u.find_spec(name) is None))')
[ -z "$missing" ] ||
    fail "Python lacks these packages: $missing" \
        "python3 -m venv '$project/.venv' && '$project/.venv/bin/pip' install '$project'; then run this again."
exec python3 -m service.cli recover "$@"
