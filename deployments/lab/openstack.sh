# shellcheck shell=bash
# Keystone, Glance and Cinder of the lab: RBD stores. Sourced by lab.

openstack_command() { # openstack_command DAEMON: sets COMMAND
  local log=$LAB_DIR/log dir=$LAB_DIR
  case $1 in
    # uwsgi's http socket closes keep-alive connections without saying so; with the header clients know.
    keystone) COMMAND=("OS_KEYSTONE_CONFIG_FILES=$dir/keystone/keystone.conf" uwsgi_python3
      --http-socket "127.0.0.1:$KEYSTONE_PORT" --wsgi-file /usr/bin/keystone-wsgi-public --master --processes 3
      --enable-threads --thunder-lock --buffer-size 65535 --die-on-term --no-orphans --disable-logging
      --add-header 'Connection: close') ;;
    glance-api) COMMAND=(glance-api --config-file "$dir/glance/glance-api.conf" --config-file "$dir/glance/changed.conf") ;;
    cinder-*) COMMAND=("$1" --config-file "$dir/cinder/cinder.conf" --config-file "$dir/cinder/hook.conf" --log-file "$log/$1-app.log") ;;
  esac
}

debug() { if [ -n "${LAB_DEBUG:-}" ]; then echo True; else echo False; fi; }

authtoken() { # authtoken USER: the section by which a service checks tokens
  cat <<C
[keystone_authtoken]
www_authenticate_uri = $KEYSTONE_URL
$(credentials "$1")
service_token_roles = service
service_token_roles_required = True
C
}

credentials() {
  cat <<C
auth_url = $KEYSTONE_URL
auth_type = password
username = $1
password = $PASSWORD
project_name = service
user_domain_name = Default
project_domain_name = Default
C
}

# --- Keystone ------------------------------------------------------------------------------------------------------

make_keystone() {
  local dir=$LAB_DIR/keystone log=$LAB_DIR/log/keystone-make.log
  rm -rf "$dir"
  mkdir -p "$dir"
  # password_hash_rounds: the least, since each log-in of a test would cost a quarter of a second of CPU otherwise.
  # Receipts (of log-ins with several methods) are never asked for, but Keystone does not start without keys for them.
  cat > "$dir/keystone.conf" <<C
[DEFAULT]
log_file = $LAB_DIR/log/keystone-app.log
debug = $(debug)
[database]
connection = $(database_url keystone)
[identity]
password_hash_algorithm = bcrypt
password_hash_rounds = 4
[token]
provider = fernet
expiration = 86400
[fernet_tokens]
key_repository = $dir/fernet
[fernet_receipts]
key_repository = $dir/fernet
[credential]
key_repository = $dir/credential
[oslo_policy]
policy_dirs = /etc/keystone/policy.d
C
  seeded keystone keystone-manage --config-file "$dir/keystone.conf" db_sync
  write_keys "$dir/fernet"
  write_keys "$dir/credential"
  inside keystone-manage --config-file "$dir/keystone.conf" bootstrap --bootstrap-password "$PASSWORD" \
    --bootstrap-region-id RegionOne --bootstrap-public-url "$KEYSTONE_URL" --bootstrap-internal-url "$KEYSTONE_URL" \
    --bootstrap-admin-url "$KEYSTONE_URL" > "$log" 2>&1 || fail "Keystone could not be made" "$log"
}

# write_keys DIR: a staged and a primary Fernet key, as 'keystone-manage fernet_setup' writes them; each of its runs
# takes seconds to import Keystone.
write_keys() {
  local n
  mkdir -m 700 "$1"
  for n in 0 1; do head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' > "$1/$n"; done
  chmod 600 "$1"/*
}

keystone_up() {
  local dir=$LAB_DIR/keystone t0
  t0=$(now)
  if [ ! -e "$dir/.made" ] && ! alive keystone; then
    make_keystone
    progress_done "$t0" "keystone: database, keys and admin made"
  fi
  alive keystone && [ -e "$dir/.made" ] && answers "$KEYSTONE_PORT" /v3 && return 0
  launch keystone
  await 60 keystone "keystone: answers" answers "$KEYSTONE_PORT" /v3
  [ ! -e "$dir/.made" ] || return 0
  t0=$(now)
  # shellcheck disable=SC2046
  inside /usr/bin/python3 - "$KEYSTONE_URL" "$PASSWORD" "$GLANCE_URL" "$CINDER_URL" < "$HERE/keystone-content.py" \
    || fail "users and catalog could not be made" $(logs_of keystone)
  progress_done "$t0" "keystone: users, roles and catalog"
  touch "$dir/.made"
}

# --- Glance --------------------------------------------------------------------------------------------------------

glance_make() {
  local dir=$LAB_DIR/glance t0 locations=True
  [ ! -e "$dir/.made" ] || return 0
  t0=$(now)
  # 2025.1 has the location API, which needs no exposed locations; Zed has only the PATCH of exposed ones.
  [ "$LAB_GENERATION" != trixie ] || locations=False
  rm -rf "$dir"
  mkdir -p "$dir"/{lock,staging,tasks,files}
  echo '[DEFAULT]' > "$dir/changed.conf"
  # Two workers: one that hashes or deletes an image inside librbd answers nothing meanwhile, and a client that asks
  # how it goes would wait for it.
  cat > "$dir/glance-api.conf" <<C
[DEFAULT]
bind_host = 127.0.0.1
bind_port = $GLANCE_PORT
workers = 2
debug = $(debug)
log_file = $LAB_DIR/log/glance-api-app.log
show_multiple_locations = $locations
show_image_direct_url = True
enabled_backends = rbd:rbd
[glance_store]
default_backend = rbd
[rbd]
rbd_store_ceph_conf = $CEPH_CONF
rbd_store_user = glance
rbd_store_pool = images
rbd_store_chunk_size = 8
[rbd2]
rbd_store_ceph_conf = $CEPH_CONF
rbd_store_user = glance
rbd_store_pool = images2
rbd_store_chunk_size = 8
[files]
filesystem_store_datadir = $dir/files
filesystem_thin_provisioning = True
[os_glance_staging_store]
filesystem_store_datadir = $dir/staging
[os_glance_tasks_store]
filesystem_store_datadir = $dir/tasks
[database]
connection = $(database_url glance)
[paste_deploy]
flavor = keystone
config_file = /etc/glance/glance-api-paste.ini
[oslo_concurrency]
lock_path = $dir/lock
$(authtoken glance)
C
  seeded glance glance-manage --config-file "$dir/glance-api.conf" db_sync
  touch "$dir/.made"
  progress_done "$t0" "glance: database made"
}

glance_up() {
  alive glance-api && answers "$GLANCE_PORT" /versions && return 0
  glance_make
  launch glance-api
  await 60 glance-api "glance: answers" answers "$GLANCE_PORT" /versions
}

# set_glance OPTION…: change options of glance-api for good. [GROUP/]KEY=VALUE; multistore=on|off; reset forgets all.
set_glance() {
  local changes=$LAB_DIR/glance/changes option
  for option; do
    case $option in reset | multistore=on | multistore=off | [a-z]*=*) ;; *) usage_error "'$option' is not KEY=VALUE" ;; esac
  done
  [ -e "$LAB_DIR/glance/.made" ] || die "Glance was never up: first 'lab up $LAB_GENERATION'"
  locked
  for option; do
    case $option in
      reset) : > "$changes" ;;
      multistore=on) echo DEFAULT/enabled_backends=rbd:rbd,rbd2:rbd,files:file >> "$changes" ;;
      multistore=off) echo DEFAULT/enabled_backends=rbd:rbd >> "$changes" ;;
      */*=*) echo "$option" >> "$changes" ;;
      *) echo "DEFAULT/$option" >> "$changes" ;;
    esac
  done
  # One section per line is fine for oslo.config, which merges them; the last value of an option wins.
  sed -E 's,^([^/]+)/([^=]+)=(.*)$,[\1]\n\2 = \3,' "$changes" > "$LAB_DIR/glance/changed.conf"
  halt glance-api
  glance_up
}

# --- Cinder --------------------------------------------------------------------------------------------------------

cinder_make() {
  local dir=$LAB_DIR/cinder t0
  [ ! -e "$dir/.made" ] || return 0
  t0=$(now)
  mkdir -p "$dir"/{lock,state,conversion}
  [ -e "$dir/hook.conf" ] || write_hook none
  cat > "$dir/cinder.conf" <<C
[DEFAULT]
debug = $(debug)
my_ip = 127.0.0.1
host = lab
state_path = $dir/state
image_conversion_dir = $dir/conversion
auth_strategy = keystone
api_paste_config = /etc/cinder/api-paste.ini
rootwrap_config = /etc/cinder/rootwrap.conf
resource_query_filters_file = /etc/cinder/resource_filters.json
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = $CINDER_PORT
osapi_volume_workers = 1
glance_api_servers = $GLANCE_URL
enabled_backends = rbd
enable_force_upload = True
allow_compression_on_image_upload = True
transport_url = $TRANSPORT_URL
report_interval = 10
# A scheduler that came up after cinder-volume knows of no backend until then, a minute otherwise.
backend_stats_polling_interval = 10
service_down_time = 60
[rbd]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = rbd
rbd_cluster_name = ceph
rbd_pool = volumes
# Volumes are thin and the disk is small: benchmarks make a hundred of 100 GiB.
max_over_subscription_ratio = 10000
rbd_user = cinder
rbd_ceph_conf = $CEPH_CONF
rbd_flatten_volume_from_snapshot = false
rbd_max_clone_depth = 5
[database]
connection = $(database_url cinder)
[oslo_concurrency]
lock_path = $dir/lock
[key_manager]
# One key for all encrypted volumes: no Barbican, and everything else as with one.
backend = cinder.keymgr.conf_key_mgr.ConfKeyManager
fixed_key = $(printf '%064d' 7)
[service_user]
send_service_user_token = True
$(credentials cinder)
$(authtoken cinder)
C
  seeded cinder cinder-manage --config-file "$dir/cinder.conf" db sync
  touch "$dir/.made"
  progress_done "$t0" "cinder: database made"
}

# reported SERVICE: it has written its heartbeat since it was started this time.
reported() {
  local since
  since=$(stat -c %Y "$LAB_DIR/pids/cinder-$1")
  [ "$(sql cinder -e "select count(*) from services where \`binary\` = 'cinder-$1' and not deleted and not disabled
    and unix_timestamp(updated_at) >= $since")" -ge 1 ]
}

cinder_ready() { # cinder_ready cinder|DAEMON: wait until it serves
  local part
  for part in volume scheduler; do
    case $1 in cinder | "cinder-$part")
      reported "$part" 2>/dev/null || await 90 "cinder-$part" "cinder: $part reports up" reported "$part" ;;
    esac
  done
  case $1 in cinder | cinder-api)
    answers "$CINDER_PORT" / || await 60 cinder-api "cinder: api answers" answers "$CINDER_PORT" / ;;
  esac
}

cinder_up() { # cinder_up [DAEMON]
  local d
  cinder_make
  for d in $(daemons_of "${1:-cinder}"); do launch "$d"; done
  cinder_ready "${1:-cinder}"
}

HOOKS="none volume_manager volume_api_class volume_driver"

hook_name() { cat "$LAB_DIR/cinder/hook" 2>/dev/null || echo none; }

hooked_daemon() { # hooked_daemon HOOK: the daemon into which it plugs
  case $1 in
    volume_manager | volume_driver) echo cinder-volume ;;
    volume_api_class) echo cinder-api ;;
  esac
}

# write_hook NAME [KEY=VALUE…]: the second configuration file of the Cinder services.
write_hook() {
  local dir=$LAB_DIR/cinder name=$1 option
  shift
  mkdir -p "$dir"
  {
    echo '[DEFAULT]'
    case $name in
      volume_manager) echo 'volume_manager = cinderlift_cinder.manager.VolumeManager' ;;
      volume_api_class) echo 'volume_api_class = cinderlift_cinder.api.API' ;;
      volume_driver) printf '[rbd]\nvolume_driver = cinderlift_cinder.driver.RBDDriver\n' ;;
    esac
    echo '[cinderlift]'
    for option; do printf '%s = %s\n' "${option%%=*}" "${option#*=}"; done
  } > "$dir/hook.conf.new"
  mv "$dir/hook.conf.new" "$dir/hook.conf"
  echo "$name" > "$dir/hook"
}

# set_hook NAME [KEY=VALUE…]: plug cinderlift into Cinder in that way, remembered over down and up.
set_hook() {
  local name=$1 before d restart
  [[ " $HOOKS " == *" $name "* ]] || usage_error "unknown hook '$name' (one of: $HOOKS)"
  [ "$name" = none ] || [ -d "$GLUE_DIR/cinderlift_cinder" ] || die "there is no $GLUE_DIR/cinderlift_cinder"
  locked
  before=$(hook_name)
  write_hook "$@"
  restart=$(printf '%s\n' "$(hooked_daemon "$before")" "$(hooked_daemon "$name")" | sort -u)
  for d in $restart; do
    alive "$d" || continue
    halt "$d"
    launch "$d"
  done
  for d in $restart; do if alive "$d"; then cinder_ready "$d"; fi; done
  progress "hook: $name"
}
