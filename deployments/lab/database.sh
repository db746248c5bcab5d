# shellcheck shell=bash
# MariaDB of the lab, on a unix socket only. Sourced by lab.
#
# Not sqlite: oslo.db begins a transaction with a read, and sqlite refuses to turn that into a write when another
# process wrote meanwhile ("database is locked" at once, whatever the timeout). Starting the three Cinder services
# together is enough to meet it, and cinder-volume then gives up.

database_command() { # sets COMMAND
  # Written to the kernel at each commit and flushed once a second: survives kill -9, costs no fsync.
  COMMAND=(mariadbd --no-defaults --user=root "--datadir=$LAB_DIR/database" "--socket=$RUN_DIR/mariadb.sock"
    "--pid-file=$LAB_DIR/database.pid" --skip-networking --skip-log-bin --default-time-zone=+00:00
    --character-set-server=utf8mb3 --collation-server=utf8mb3_general_ci --max-connections=500
    --innodb-flush-log-at-trx-commit=2 --innodb-doublewrite=0 --innodb-buffer-pool-size=64M
    --innodb-log-file-size=16M)
}

# database_url NAME: for oslo.db. Root has no password: the socket is in a directory that only root may enter.
database_url() { echo "mysql+pymysql://root@localhost/$1?unix_socket=$RUN_DIR/mariadb.sock&charset=utf8"; }

sql() { inside mariadb --no-defaults -N "--socket=$RUN_DIR/mariadb.sock" "$@"; }

make_database() {
  local log=$LAB_DIR/log/database-make.log
  rm -rf "$LAB_DIR/database"
  mkdir -p "$LAB_DIR/database"
  inside mariadb-install-db --no-defaults --user=root --basedir=/usr "--datadir=$LAB_DIR/database" --skip-test-db \
    --auth-root-authentication-method=normal --innodb-log-file-size=16M > "$log" 2>&1 || fail "MariaDB could not be made" "$log"
  touch "$LAB_DIR/database/.made"
}

database_up() {
  local t0
  t0=$(now)
  if [ ! -e "$LAB_DIR/database/.made" ]; then
    make_database
    progress_done "$t0" "database: made"
  fi
  alive database && return 0
  launch database
  await 60 database "database: answers" sql -e 'select 1'
}

# seeded NAME CMD…: make the database NAME, its tables by CMD. What CMD does depends on the packages alone, so its result
# is kept in the root file system, and the next lab made from nothing reads it from there.
seeded() {
  local name=$1 seed=$LAB_ROOT/var/cache/cinderlift-lab/$1.sql log=$LAB_DIR/log/$1-db.log
  shift
  sql -e "drop database if exists $name; create database $name"
  if [ -e "$seed" ]; then
    sql "$name" < "$seed"
    return 0
  fi
  inside "$@" >> "$log" 2>&1 || fail "the tables of $name could not be made" "$log"
  mkdir -p "$(dirname "$seed")"
  inside mariadb-dump --no-defaults "--socket=$RUN_DIR/mariadb.sock" "$name" > "$seed.new"
  mv "$seed.new" "$seed"
}
