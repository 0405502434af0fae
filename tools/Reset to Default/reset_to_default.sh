#!/bin/sh
# Returns the server to its baseline and keeps the installation's own settings; ends with exactly
#
#     Reset successfully
#
# Usage: reset_to_default.sh [options of `deviceon-backup reset-to-default`]
#
#     --plan                     show what would be done and what is in the way; do nothing
#     --yes                      ask nothing: for scripts
#     --config FILE              a configuration other than /etc/deviceon-backup/config.yaml
#
# It shows what will be replaced and what stays, and has the server's name typed. The state before is kept:
# `deviceon-backup rollback` returns to it, `deviceon-backup commit` removes it.
#
# Where the service runs in a container, DEVICEON_BACKUP_CONTAINER names it: this runs inside of it. DOCKER is the program
# for that (docker). The exit code is explained in docs/CLI.md: 0 only when everything was reset.
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
    exec "${DOCKER:-docker}" exec "-i$terminal" "$DEVICEON_BACKUP_CONTAINER" deviceon-backup reset-to-default "$@"
fi
# The program as it is installed, else the one in the environment beside this script, else its source beside.
if command -v deviceon-backup >/dev/null 2>&1; then
    exec deviceon-backup reset-to-default "$@"
fi
if [ -x "$project/.venv/bin/deviceon-backup" ]; then
    exec "$project/.venv/bin/deviceon-backup" reset-to-default "$@"
fi
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
exec python3 -m service.cli reset-to-default "$@"
