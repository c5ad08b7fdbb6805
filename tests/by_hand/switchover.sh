#!/usr/bin/env bash
# The switchover as a person with psql and a shell would do it: what pgleap's stalls are held against. It does the steps
# that nobody can leave out, one psql each, side by side where a shell can; it has no deadline, no way back and no proof.
#
# Configuration by the environment; lists are separated by blanks or, where names may hold any character, by newlines:
#   PSQL                        the program
#   SOURCE_HOST SOURCE_PORT     socket directory and port of the leader that takes writes
#   TARGET_HOST TARGET_PORT     of the one that is to take them
#   SOURCE_DATA TARGET_DATA     their data directories
#   DATABASES                   names, a line each
#   FORWARD                     publication and subscription by which the target follows; slots are FORWARD_<database's oid on the source>
#   BACKWARD                    the same for the way back; its subscriptions are disabled, its slots exist on the target
#   APP CONSOLE                 role of the clients; user of the admin consoles
#   POOLERS                     socket_dir:port of every PgBouncer
#   POOLER_FILES                files that hold their database entries
set -euo pipefail

psql=("$PSQL" -X -q -A -t -v ON_ERROR_STOP=1)
mapfile -t databases <<<"$DATABASES"
read -ra poolers <<<"$POOLERS"
read -ra files <<<"$POOLER_FILES"

source_sql() { "${psql[@]}" -h "$SOURCE_HOST" -p "$SOURCE_PORT" -U postgres -d "$1"; }
target_sql() { "${psql[@]}" -h "$TARGET_HOST" -p "$TARGET_PORT" -U postgres -d "$1"; }

# Runs a function for each of some arguments, all at once; fails when one fails.
each() {
    local run=$1 pids=() argument pid failed=0
    shift
    for argument in "$@"; do
        "$run" "$argument" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || failed=1
    done
    return $failed
}

console() { "${psql[@]}" -h "${1%:*}" -p "${1##*:}" -U "$CONSOLE" -d pgbouncer -c "$2"; }
pause() { console "$1" PAUSE; }
resume() {
    console "$1" RELOAD
    console "$1" RESUME
}

# Before anybody waits: the target follows closely. PostgreSQL 15 starts one apply worker in five seconds at most.
near() {
    local behind="SELECT bool_and(active AND pg_current_wal_lsn() - confirmed_flush_lsn < 1000000) FROM pg_replication_slots
        WHERE slot_name LIKE '$FORWARD\\_%' AND database = current_database()"
    until [ "$(source_sql "$1" <<<"$behind")" = t ]; do sleep 0.1; done
}

fence() {
    local rules=$SOURCE_DATA/pg_hba.conf
    cp "$rules" "$rules.new"
    sed -i "1i local all $APP reject\nhost all $APP all reject" "$rules.new"
    mv "$rules.new" "$rules"
    source_sql postgres <<<"SELECT pg_reload_conf();
        SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '$APP';" >/dev/null
    until [ "$(source_sql postgres <<<"SELECT count(*) FROM pg_stat_activity WHERE usename = '$APP'")" = 0 ]; do :; done
}
open_target() {
    local rules=$TARGET_DATA/pg_hba.conf
    sed "/ $APP reject\$/d; / $APP all reject\$/d" "$rules" >"$rules.new"
    mv "$rules.new" "$rules"
    target_sql postgres <<<"SELECT pg_reload_conf()" >/dev/null
}

# Everything written has arrived: a row of its own, and the slot confirmed past the last position.
settle() {
    local mark end
    mark=$(source_sql "$1" <<<"INSERT INTO by_hand.marks DEFAULT VALUES RETURNING id")
    end=$(source_sql "$1" <<<"SELECT pg_current_wal_lsn()")
    until [ "$(target_sql "$1" <<<"SELECT count(*) FROM by_hand.marks WHERE id = '$mark'")" = 1 ]; do :; done
    local confirmed="SELECT bool_and(confirmed_flush_lsn >= '$end') FROM pg_replication_slots
        WHERE slot_name LIKE '$FORWARD\\_%' AND database = current_database()"
    until [ "$(source_sql "$1" <<<"$confirmed")" = t ]; do :; done
}
sequences() {
    source_sql "$1" <<'SQL' | target_sql "$1" >/dev/null
SELECT format('SELECT format(''SELECT setval(%%L, %%s, %%L);'', %L, last_value, is_called) FROM %s',
    oid::regclass::text, oid::regclass) FROM pg_class WHERE relkind = 'S' AND relpersistence = 'p' \gexec
SQL
}
unfollow() {
    target_sql "$1" <<<"ALTER SUBSCRIPTION $FORWARD DISABLE"
    until [ "$(source_sql "$1" <<<"SELECT count(*) FROM pg_replication_slots WHERE active
        AND slot_name LIKE '$FORWARD\\_%' AND database = current_database()")" = 0 ]; do :; done
}
advance() {
    target_sql "$1" <<<"SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn())
        FROM pg_replication_slots WHERE slot_name LIKE '$BACKWARD\\_%' AND database = current_database()" >/dev/null
}
follow() { source_sql "$1" <<<"ALTER SUBSCRIPTION $BACKWARD ENABLE"; }

each near "${databases[@]}"
each pause "${poolers[@]}"
fence
each settle "${databases[@]}"
each sequences "${databases[@]}"
each unfollow "${databases[@]}"
each advance "${databases[@]}"
sed -i "s/ port=$SOURCE_PORT / port=$TARGET_PORT /" "${files[@]}"
open_target
each resume "${poolers[@]}"
each follow "${databases[@]}"
