# shellcheck shell=bash
# Settings, progress and daemons of the lab. Sourced by lab.

settings() { # settings GENERATION: everything that follows from the generation
  LAB_GENERATION=$1
  case $LAB_GENERATION in
    bookworm) PORT_BASE=21000 ;;
    trixie) PORT_BASE=23000 ;;
    *) usage_error "unknown generation '$LAB_GENERATION' (bookworm or trixie)" ;;
  esac
  LAB_STATE=$(readlink -m "${LAB_STATE:-$REPO/.lab}")
  LAB_ROOT=$(readlink -m "${LAB_ROOTS:-$LAB_STATE}")/root.$LAB_GENERATION
  LAB_DIR=$LAB_STATE/$LAB_GENERATION
  [[ $LAB_DIR$REPO != *[[:space:]\'\"]* ]] || die "the path of the lab has blanks or quotes: $LAB_DIR"
  choose_ports
  # Unix socket paths end at 107 bytes and a clone may live anywhere: sockets get a short directory of their own.
  RUN_DIR=/run/cinderlift-lab.$(printf %s "$LAB_DIR" | sha256sum | cut -c1-8)
  GLUE_DIR=$REPO/deployments/cinder
  CEPH_DIR=$LAB_DIR/ceph
  CEPH_CONF=$CEPH_DIR/ceph.conf

  KEYSTONE_PORT=$PORT_BASE
  GLANCE_PORT=$((PORT_BASE + 292))
  AMQP_PORT=$((PORT_BASE + 672)) EPMD_PORT=$((PORT_BASE + 671)) AMQP_DIST_PORT=$((PORT_BASE + 673))
  CINDER_PORT=$((PORT_BASE + 776))
  MON_PORT=$((PORT_BASE + 789)) OSD_PORT_MIN=$((PORT_BASE + 800)) OSD_PORT_MAX=$((PORT_BASE + 899))

  OSDS=3 OSD_GIB=${LAB_OSD_GIB:-4}
  PASSWORD=labpass # one throw-away password for every account: everything listens on 127.0.0.1 only
  KEYSTONE_URL=http://127.0.0.1:$KEYSTONE_PORT/v3
  GLANCE_URL=http://127.0.0.1:$GLANCE_PORT
  CINDER_URL=http://127.0.0.1:$CINDER_PORT
  TRANSPORT_URL=rabbit://openstack:$PASSWORD@127.0.0.1:$AMQP_PORT/
}

# choose_ports: those that this state was made with, else LAB_PORT_BASE, else those of the generation. They are in the
# monitor's map, the catalog and every configuration file, so they can't change before the state is wiped.
choose_ports() {
  local made
  made=$(cat "$LAB_DIR/port_base" 2>/dev/null || echo "${LAB_PORT_BASE:-$PORT_BASE}")
  [ "$made" = "${LAB_PORT_BASE:-$made}" ] || die "$LAB_DIR was made with LAB_PORT_BASE=$made: first 'lab down $LAB_GENERATION --wipe'"
  PORT_BASE=$made
}

# --- progress and errors -------------------------------------------------------------------------------------------

now() { date +%s%3N; }
progress() { printf '[%s] %s\n' "$LAB_GENERATION" "$*" >&2; }
progress_done() { # progress_done START_MS WHAT
  local ms=$(($(now) - $1))
  printf '[%s] %s: %d.%d s\n' "$LAB_GENERATION" "$2" $((ms / 1000)) $((ms % 1000 / 100)) >&2
}
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }
usage_error() { printf "lab: %s; see 'lab --help'\n" "$*" >&2; exit 2; }

# fail WHAT [LOG…]: WHAT went wrong, with the last lines of the logs that should tell why.
fail() {
  local what=$1 log; shift
  for log; do
    [ -s "$log" ] || continue
    printf '%s\n' "--- last lines of $log" >&2
    tail -n 15 "$log" >&2
  done
  die "$what"
}

# locked takes the lock of the generation for the rest of this process: commands that change the lab run one by one.
locked() {
  mkdir -p "$LAB_STATE"
  exec 9> "$LAB_STATE/$LAB_GENERATION.lock"
  flock -n 9 || { progress "another lab command is running: waiting for it"; flock 9; }
}

# --- running inside the root file system ---------------------------------------------------------------------------

# What every process of the lab does first, in a mount and UTS namespace of its own: so nothing is ever mounted on the
# host, and removing the root file system can't reach /dev. The state directory, the sockets and the Cinder glue have
# the same path inside as outside. It execs all the way: the pid that started it becomes the daemon.
# shellcheck disable=SC2016 # the words are for the shell that enters
ENTER='
set -e
root=$1 etc_ceph=$2; shift 2
hostname lab
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
[ ! -d "$etc_ceph" ] || mount --bind "$etc_ceph" "$root/etc/ceph"
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  shift
done
shift
exec chroot "$root" "$@"'

# enter_command sets ENTER_COMMAND: the words to put before a command that shall run inside.
enter_command() {
  local binds=("$LAB_DIR" "$RUN_DIR")
  [ ! -d "$GLUE_DIR" ] || binds+=("$GLUE_DIR")
  mkdir -p "$RUN_DIR" "$LAB_DIR"/{pids,log}
  chmod 700 "$RUN_DIR"
  ENTER_COMMAND=(unshare --mount --uts --propagation private sh -c "$ENTER" sh "$LAB_ROOT" "$CEPH_DIR/etc" "${binds[@]}" --
    env -i "LANG=C.UTF-8" "HOME=/root" "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    "CEPH_CONF=$CEPH_CONF" "LAB_GENERATION=$LAB_GENERATION" "LAB_DIR=$LAB_DIR" "LAB_FSID=$(fsid)" "PYTHONPATH=$GLUE_DIR"
    "NO_PROXY=127.0.0.1,localhost" "no_proxy=127.0.0.1,localhost" "TERM=${TERM:-dumb}")
  local word
  while read -r word; do ENTER_COMMAND+=("$word"); done < <(account admin)
}

inside() { # inside CMD…: run CMD inside and wait for it. VAR=VALUE words may come before CMD
  local ENTER_COMMAND
  enter_command
  "${ENTER_COMMAND[@]}" "$@"
}

# account USER: the OS_* variables of one of the lab's accounts. Its project has its name, except for services.
account() {
  local project=$1
  case $1 in cinderlift | glance | cinder) project=service ;; esac
  printf '%s\n' "OS_AUTH_URL=$KEYSTONE_URL" OS_IDENTITY_API_VERSION=3 "OS_USERNAME=$1" "OS_PASSWORD=$PASSWORD" \
    "OS_PROJECT_NAME=$project" OS_PROJECT_DOMAIN_NAME=Default OS_USER_DOMAIN_NAME=Default \
    OS_REGION_NAME=RegionOne OS_VOLUME_API_VERSION=3
}

# --- daemons -------------------------------------------------------------------------------------------------------

SERVICES=(ceph rabbit database keystone glance cinder)

daemons_of() { # daemons_of SERVICE|DAEMON: its daemons in starting order
  case $1 in
    ceph) echo ceph-mon ceph-osd0 ceph-osd1 ceph-osd2 ceph-mgr ;;
    rabbit) echo epmd rabbit ;;
    database | keystone) echo "$1" ;;
    glance) echo glance-api ;;
    cinder) echo cinder-api cinder-scheduler cinder-volume ;;
    ceph-mon | ceph-osd[0-2] | ceph-mgr | epmd | glance-api | cinder-api | cinder-scheduler | cinder-volume) echo "$1" ;;
    *) usage_error "unknown service or daemon '$1'" ;;
  esac
}

all_daemons() { local s; for s in "${SERVICES[@]}"; do daemons_of "$s"; done | tr ' ' '\n'; }

# state_of PID: its state (Z: ended, but not yet waited for) and when the kernel started it, in clock ticks since boot.
# Pid and tick together never name another process. Both by one read: between two of them it may be gone.
state_of() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f1,20; }

tick() { state_of "$1" | cut -d' ' -f2; }

pid_of() { # pid_of DAEMON: its pid, or status 1 when it does not run
  local pid started state
  read -r pid started 2>/dev/null < "$LAB_DIR/pids/$1" || return 1
  state=$(state_of "$pid") || return 1
  [ -n "$started" ] && [ "${state#* }" = "$started" ] && [ "${state% *}" != Z ] && echo "$pid"
}

alive() { pid_of "$1" > /dev/null; }

any_alive() { local d; for d in $(all_daemons); do alive "$d" && return 0; done; return 1; }

# spawn DAEMON CMD…: start CMD inside, detached, and record its pid. launch is the way to call it.
spawn() {
  local daemon=$1 pid ENTER_COMMAND
  shift
  enter_command
  setsid nohup "${ENTER_COMMAND[@]}" "$@" >> "$LAB_DIR/log/$daemon.log" 2>&1 < /dev/null 8>&- 9>&- &
  pid=$!
  disown "$pid"
  echo "$pid $(tick "$pid")" > "$LAB_DIR/pids/$daemon"
}

# group_of PGID: "pid rss-in-pages" of each process of a process group, from /proc: the host may have no procps.
group_of() {
  local file stat fields
  for file in /proc/[0-9]*/stat; do
    read -r stat 2>/dev/null < "$file" || continue
    read -ra fields <<< "${stat##*) }" # from the third field on: state, parent, group, …
    [ "${fields[2]}" != "$1" ] || echo "${stat%% *} ${fields[21]}"
  done
}

# reap_group DAEMON: kill what a daemon that is gone left of its process group. The pid may be another's by now, so
# only processes that live in our root file system count.
reap_group() {
  local leader member _
  read -r leader _ 2>/dev/null < "$LAB_DIR/pids/$1" || return 0
  while read -r member _; do
    [ "$(readlink "/proc/$member/root")" != "$LAB_ROOT" ] || kill -KILL "$member" 2>/dev/null || true
  done < <(group_of "$leader")
  rm -f "$LAB_DIR/pids/$1"
}

# slay DAEMON: KILL it with its children, as a power cut would. (The children of glance-api go on serving otherwise.)
slay() {
  local pid
  if pid=$(pid_of "$1"); then kill -KILL "$pid" 2>/dev/null || true; fi # it may just have ended
  reap_group "$1"
}

# halt DAEMON: TERM, up to 20 s of patience, KILL, then the rest of its group. Idempotent.
halt() {
  local pid tries
  if pid=$(pid_of "$1"); then
    kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < 200; tries++)); do alive "$1" || break; sleep 0.1; done
    if alive "$1"; then kill -KILL "$pid" 2>/dev/null || true; fi # it may just have ended
  fi
  reap_group "$1"
}

# await SECONDS DAEMON WHAT CMD…: poll CMD, say how long it took; fail at once when DAEMON dies meanwhile.
await() {
  local deadline t0 daemon=$2 what=$3
  t0=$(now)
  deadline=$((t0 + $1 * 1000))
  shift 3
  until "$@" > /dev/null 2>&1; do
    # shellcheck disable=SC2046 # one log per word
    alive "$daemon" || fail "$daemon died before: $what" $(logs_of "$daemon")
    # shellcheck disable=SC2046
    [ "$(now)" -lt "$deadline" ] || fail "$daemon runs, but not yet after $(((deadline - t0) / 1000)) s: $what" $(logs_of "$daemon")
    sleep 0.1
  done
  progress_done "$t0" "$what"
}

# logs_of DAEMON: what it prints, and what it logs. The state directory's path has no blanks (settings checks that).
logs_of() { local f; for f in "$LAB_DIR/log/$1.log" "$LAB_DIR/log/$1-app.log"; do [ ! -s "$f" ] || echo "$f"; done; }

# answers PORT PATH: an HTTP server is there, and well. Needs nothing but bash: the host may have no curl.
answers() (
  exec 2> /dev/null 7<> "/dev/tcp/127.0.0.1/$1" || exit 1
  printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&7
  IFS= read -r -t 10 line <&7 && [[ $line == HTTP/1.?' '[234]* ]]
)
