# shellcheck shell=bash
# Ceph of the lab: one mon, one mgr, three OSDs on sparse files, loopback only. Sourced by lab.

fsid() { sed -n 's/^fsid = //p' "$CEPH_CONF" 2>/dev/null || true; }

write_ceph_conf() {
  local class_dir
  # Debian 13 builds Ceph with a relative default for osd_class_dir: rbd would answer EOPNOTSUPP.
  class_dir=$(cd "$LAB_ROOT" && echo usr/lib/*/rados-classes)
  cat > "$CEPH_CONF.new" <<C
[global]
fsid = $1
mon_host = v2:127.0.0.1:$MON_PORT
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv4 = true
ms_bind_port_min = $OSD_PORT_MIN
ms_bind_port_max = $OSD_PORT_MAX
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_read_lease_ratio = 30
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_autoscale_mode = off
osd_pool_default_pg_num = 32
keyring = $CEPH_DIR/keyring
run_dir = $RUN_DIR
admin_socket = $RUN_DIR/\$name.asok
[client]
log_file =
admin_socket =
[client.cinder]
keyring = $CEPH_DIR/etc/ceph.client.cinder.keyring
[client.glance]
keyring = $CEPH_DIR/etc/ceph.client.glance.keyring
[client.cinderlift]
keyring = $CEPH_DIR/etc/ceph.client.cinderlift.keyring
[mon]
log_file = $LAB_DIR/log/ceph-mon-app.log
mon_data = $CEPH_DIR/mon
mon_initial_members = a
mon_cluster_log_file = $LAB_DIR/log/ceph-cluster.log
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_osd_nearfull_ratio = .94
mon_osd_backfillfull_ratio = .95
mon_osd_full_ratio = .97
auth_allow_insecure_global_id_reclaim = false
[mon.a]
public_addr = v2:127.0.0.1:$MON_PORT
[mgr]
log_file = $LAB_DIR/log/ceph-mgr-app.log
mgr_data = $CEPH_DIR/mgr
mgr_initial_modules =
[osd]
log_file = $LAB_DIR/log/ceph-osd\$id-app.log
osd_data = $CEPH_DIR/osd\$id
osd_objectstore = bluestore
bluestore_block_size = $((OSD_GIB << 30))
bluestore_block_create = true
bluestore_fsck_on_mount = false
osd_memory_target = 939524096
osd_class_dir = /$class_dir
osd_class_load_list = *
osd_class_default_list = *
C
  mv "$CEPH_CONF.new" "$CEPH_CONF"
}

GLANCE_OSD_CAPS='profile rbd pool=images, profile rbd pool=images2'
GLANCE_OSD_CAPS_EARLY="$GLANCE_OSD_CAPS, profile rbd-read-only pool=volumes"

# Every key with its caps is in the keyring from which the mon is made, so no 'ceph auth' call is ever needed. The caps
# of cinder and glance are those of Ceph's OpenStack manual (images2 besides). Those of cinderlift are the least that
# works: 'profile rbd' on a pool covers its RADOS namespaces too, so the journal needs nothing more, and on the mon it
# allows 'osd blocklist add'.
write_keyrings() {
  # shellcheck disable=SC2016 # the words are for the shell inside
  inside sh -ec 'cd "$1"; osds=$2 glance=$3
    key() { n=$1; shift; ceph-authtool keyring --gen-key -n "$n" "$@"; }
    ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon "allow *"
    key client.admin --cap mon "allow *" --cap osd "allow *" --cap mgr "allow *" --cap mds "allow *"
    key mgr.a --cap mon "allow profile mgr" --cap osd "allow *" --cap mds "allow *"
    for i in $(seq 0 $((osds - 1))); do key "osd.$i" --cap mon "allow profile osd" --cap osd "allow *" --cap mgr "allow profile osd"; done
    key client.cinder --cap mon "profile rbd" --cap mgr "profile rbd pool=volumes" \
      --cap osd "profile rbd pool=volumes, profile rbd-read-only pool=images, profile rbd-read-only pool=images2"
    key client.glance --cap mon "profile rbd" --cap mgr "profile rbd pool=images, profile rbd pool=images2" --cap osd "$glance"
    key client.cinderlift --cap mon "profile rbd" \
      --cap mgr "profile rbd pool=volumes, profile rbd pool=images, profile rbd pool=images2" \
      --cap osd "profile rbd pool=volumes, profile rbd pool=images, profile rbd pool=images2"
    for name in cinder glance cinderlift; do
      out=etc/ceph.client.$name.keyring
      printf "[client.%s]\n\tkey = %s\n" "$name" "$(ceph-authtool keyring -n "client.$name" --print-key)" > "$out"
      chmod 600 "$out"
    done' sh "$CEPH_DIR" "$OSDS" "$GLANCE_OSD_CAPS" > /dev/null
}

make_ceph() {
  local id i log=$LAB_DIR/log/ceph-make.log
  id=$(cat /proc/sys/kernel/random/uuid)
  rm -rf "$CEPH_DIR"
  mkdir -p "$CEPH_DIR"/{mon,mgr,etc}
  write_ceph_conf "$id"
  ln -s "$CEPH_CONF" "$CEPH_DIR/etc/ceph.conf"
  write_keyrings
  for ((i = 0; i < OSDS; i++)); do
    mkdir -p "$CEPH_DIR/osd$i"
    cat /proc/sys/kernel/random/uuid > "$CEPH_DIR/osd$i/uuid"
  done
  # shellcheck disable=SC2016
  inside sh -ec 'cd "$1"
    monmaptool --create --clobber --fsid "$2" --addv a "[v2:127.0.0.1:$3]" monmap
    ceph-mon --mkfs -i a --monmap monmap --keyring keyring
    pids=
    for osd in osd*; do ceph-osd -i "${osd#osd}" --mkfs --no-mon-config --osd-uuid "$(cat "$osd/uuid")" & pids="$pids $!"; done
    for pid in $pids; do wait "$pid"; done' sh "$CEPH_DIR" "$id" "$MON_PORT" > "$log" 2>&1 || fail "Ceph could not be made" "$log"
}

ceph_command() { # ceph_command DAEMON: sets COMMAND
  case $1 in
    ceph-mon) COMMAND=(ceph-mon -f -i a) ;;
    ceph-mgr) COMMAND=(ceph-mgr -f -i a) ;;
    ceph-osd*) COMMAND=(ceph-osd -f -i "${1#ceph-osd}") ;;
  esac
}

ceph_content() { inside /usr/bin/python3 - "$@" < "$HERE/ceph-content.py"; }

# ceph_start DAEMON…: start those that do not run, and wait until the monitor knows the new processes; it would report
# the old ones as up for a while after a kill.
ceph_start() {
  local d before t0 dead=()
  for d; do alive "$d" || dead+=("$d"); done
  [ ${#dead[@]} -gt 0 ] || return 0
  if [ "${dead[0]}" = ceph-mon ]; then
    launch ceph-mon
    await 30 ceph-mon "ceph: mon listens" port_open "$MON_PORT"
    dead=("${dead[@]:1}")
  fi
  before=$(ceph_content seen) || fail "the monitor does not answer" "$(logs_of ceph-mon)"
  for d in "${dead[@]}"; do launch "$d"; done
  t0=$(now)
  # shellcheck disable=SC2046 # one log per word
  ceph_content joined "$before" "${dead[@]}" || fail "not joined to the cluster: ${dead[*]}" $(for d in "${dead[@]}"; do logs_of "$d"; done)
  progress_done "$t0" "ceph: ${dead[*]:-mon} up"
}

ceph_up() {
  local t0 d
  t0=$(now)
  if [ ! -e "$CEPH_DIR/.made" ]; then
    for d in $(daemons_of ceph); do halt "$d"; done # of an attempt that failed
    make_ceph
    progress_done "$t0" "ceph: mon and $OSDS OSDs made"
    ceph_start ceph-mon
    ceph_content osds "$CEPH_DIR" "$OSDS" || fail "the OSDs could not be added" "$(logs_of ceph-mon)"
  else
    write_ceph_conf "$(fsid)"
  fi
  # shellcheck disable=SC2046
  ceph_start $(daemons_of ceph)
  t0=$(now)
  # shellcheck disable=SC2046
  ceph_content pools "$OSDS" || fail "Ceph did not become healthy" $(for d in $(daemons_of ceph); do logs_of "$d"; done)
  progress_done "$t0" "ceph: pools there, all PGs active+clean"
  touch "$CEPH_DIR/.made"
}

# set_caps early|documented: what client.glance may read.
set_caps() {
  local osd=$GLANCE_OSD_CAPS
  case $1 in
    early) osd=$GLANCE_OSD_CAPS_EARLY ;;
    documented) ;;
    *) usage_error "caps are 'early' or 'documented', not '$1'" ;;
  esac
  inside ceph auth caps client.glance mon 'profile rbd' mgr 'profile rbd pool=images, profile rbd pool=images2' osd "$osd" 2>/dev/null \
    || fail "the caps of client.glance could not be changed" "$(logs_of ceph-mon)"
}
