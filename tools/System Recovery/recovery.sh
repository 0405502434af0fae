#!/bin/sh
# Restores the server from one archive: asks for its path, and ends with exactly
#
#     Restore successfully
#
# Usage: recovery.sh [ARCHIVE] [options of `deviceon-backup restore`]
#
# With a configuration (/etc/deviceon-backup/config.yaml, or $DEVICEON_BACKUP_CONFIG) nothing else is needed. Without
# one, on a new machine, say where PostgreSQL is and which version of the server is installed:
#
#     PGHOST PGPORT PGUSER PGPASSWORD or PGPASSFILE     as for psql; the role must be a superuser
#     DEVICEON_BACKUP_SERVER_VERSION                    for example 5.3.12
#
# The exit code is that of `deviceon-backup restore` (docs/CLI.md): 0 only when everything was restored.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
project=$(dirname -- "$(dirname -- "$here")")

fail() { # CODE MESSAGE REMEDY
    printf 'error: %s\n  what to do: %s\n' "$2" "$3" >&2
    exit "$1"
}

case ${1-} in
-h | --help)
    sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit 0
    ;;
'' | -*) archive='' ;;
*)
    archive=$1
    shift
    ;;
esac

cat >&2 <<'TEXT'
System Recovery

  1. The archive's key is asked of this machine's TPM, and the archive's version compared with the server's.
  2. Databases and configuration are restored beside what is there now, every byte authenticated and compared.
  3. When all of it is good, they are exchanged. Until then nothing that is live is changed.
  4. The state of before is kept until `deviceon-backup commit`; `deviceon-backup rollback` returns to it.

TEXT

if [ -z "$archive" ]; then
    printf 'Path of the archive: ' >&2
    IFS= read -r archive || [ -n "$archive" ] || fail 2 'no path was given' 'Type the path of the archive, then Enter.'
    # As terminals paste it: blanks around it, or quotes, or the home directory as ~.
    archive=$(printf '%s' "$archive" | sed "s/^[[:space:]]*//; s/[[:space:]]*\$//; s/^'\\(.*\\)'\$/\\1/; s/^\"\\(.*\\)\"\$/\\1/")
    case $archive in
    '') fail 2 'no path was given' 'Type the path of the archive, then Enter.' ;;
    \~/*) archive=${HOME-}/${archive#??} ;;
    esac
fi

case $archive in
*://*) ;;
*)
    case $archive in
    /*) ;;
    *) archive=$(pwd)/$archive ;;
    esac
    [ -e "$archive" ] || fail 4 "there is no file $archive" 'Check the path; is the disk or share mounted?'
    [ -f "$archive" ] || fail 4 "$archive is not a file" 'Give the path of one Backup_YYYYMMDD_HHMMZ.zip.'
    [ -r "$archive" ] || fail 4 "$archive cannot be read by this user" 'Run this as root.'
    ;;
esac

if command -v deviceon-backup >/dev/null 2>&1; then
    exec deviceon-backup restore --yes "$@" -- "$archive"
elif [ -x "$project/.venv/bin/deviceon-backup" ]; then
    exec "$project/.venv/bin/deviceon-backup" restore --yes "$@" -- "$archive"
elif [ -d "$project/service/cli" ] && command -v python3 >/dev/null 2>&1; then
    PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    exec python3 -m service.cli restore --yes "$@" -- "$archive"
fi
fail 1 'deviceon-backup is not installed' "Install it (pip install $project), then run this again."
