# shellcheck shell=bash
# The root file system of a generation: Debian with every service installed, made by mmdebstrap. Sourced by lab.
#
# Guarantee: $LAB_ROOT exists only when it is complete. It is made under another name and renamed after its marker
# file was written, so a prepare that is killed leaves rubbish that the next one removes, never half a system.

ROOT_MARKER=etc/cinderlift-lab   # holds the fingerprint of the package list and hooks it was made with

PACKAGES=(
  ceph-mon ceph-osd ceph-mgr ceph-common python3-rados python3-rbd rabbitmq-server
  keystone glance-api cinder-api cinder-scheduler cinder-volume uwsgi-core uwsgi-plugin-python3
  python3-openstackclient python3-cinderclient python3-glanceclient python3-openstacksdk
  mariadb-server-core mariadb-client-core mariadb-client python3-pymysql qemu-utils curl jq procps
)

# Left out of every package: nothing here is read at run time, and small files are most of the unpacking time.
EXCLUDED=('/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/lintian/*'
  '/usr/lib/python3/dist-packages/cinder/tests/*' '/usr/lib/python3/dist-packages/glance/tests/*'
  '/usr/lib/python3/dist-packages/keystone/tests/*')

# host_codename prints the suite of the host's Debian, e.g. bookworm.
host_codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# mirror_of SUITE prints the URI from which the host's own apt takes SUITE, so that no mirror is written down here.
mirror_of() {
  apt-get indextargets --format "\$(RELEASE) \$(COMPONENT) \$(SITE) \$(REPO_URI)" 'Created-By: Packages' |
    awk -v suite="$1" '$1 == suite && $2 == "main" { print $NF; exit }'
}

# root_sources prints the apt source lines of the generation, on the host's mirrors.
root_sources() {
  local host main security
  host=$(host_codename)
  main=$(mirror_of "$host")
  security=$(mirror_of "$host-security")
  [ -n "$main" ] || die "the host's apt sources do not name a mirror of $host: the lab needs a Debian host (12 or 13)"
  echo "deb $main $LAB_GENERATION main"
  echo "deb $main $LAB_GENERATION-updates main"
  [ -z "$security" ] || echo "deb $security $LAB_GENERATION-security main"
}

# host_acquire prints the host's apt settings about proxies and validity, one mmdebstrap option a line.
host_acquire() {
  apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries|ForceIPv)' | grep -v ' "";$' | sed 's/^/--aptopt=/' || true
}

# Runs before the packages are unpacked: no daemon is started by them, Python is compiled when it is first imported
# (three quarters of the modules never are), and the host name of the lab can be resolved (cinder-common asks for it).
write_root_hook() {
  cat > "$1" <<'H'
#!/bin/sh
set -e
printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
chroot "$1" dpkg-divert --local --rename --add /usr/bin/py3compile >/dev/null
ln -s /bin/true "$1/usr/bin/py3compile"
printf '127.0.0.1 localhost lab\n' > "$1/etc/hosts"
echo lab > "$1/etc/hostname"
H
  chmod 755 "$1"
}

# root_fingerprint identifies what a root file system is made of; another one means: make it again.
root_fingerprint() { { printf '%s\n' "$LAB_GENERATION" "${PACKAGES[@]}" "${EXCLUDED[@]}"; declare -f write_root_hook; } | sha256sum | cut -c1-16; }

root_ready() { [ "$(cat "$LAB_ROOT/$ROOT_MARKER" 2>/dev/null)" = "$(root_fingerprint)" ]; }

# update_host_lists LOG: apt names its mirrors only when it has fetched their lists, and a fresh host has none.
update_host_lists() {
  [ -z "$(mirror_of "$(host_codename)")" ] || return 0
  progress "updating the host's package lists"
  patient_apt update >> "$1" 2>&1 || fail "apt-get update failed on the host" "$1"
}

# install_tools LOG: what a minimal Debian may lack.
install_tools() {
  local p missing=()
  for p in mmdebstrap mount; do command -v "$p" > /dev/null || missing+=("$p"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  progress "installing on the host: ${missing[*]}"
  install_packages "${missing[@]}" >> "$1" 2>&1 || fail "could not be installed on the host: ${missing[*]}" "$1"
}

# make_root LOG: the root file system under its temporary name $LAB_ROOT.new.
make_root() {
  local log=$1 opts=() path
  write_root_hook "$LAB_ROOT.hook"
  for path in "${EXCLUDED[@]}"; do opts+=("--dpkgopt=path-exclude=$path"); done
  while read -r path; do opts+=("$path"); done < <(host_acquire)
  root_sources > "$LAB_ROOT.list" || exit 1
  # Mounts that mmdebstrap makes stay in a mount namespace of their own: whatever kills it, nothing is left mounted.
  unshare --mount --uts --propagation private sh -c 'hostname lab; exec "$@"' sh \
    mmdebstrap --mode=root --variant=apt --components=main --include="$(IFS=,; echo "${PACKAGES[*]}")" \
      --dpkgopt=force-unsafe-io --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
      --aptopt='DPkg::Lock::Timeout "300"' "${opts[@]}" --essential-hook="$LAB_ROOT.hook" \
      "$LAB_GENERATION" "$LAB_ROOT.new" "$LAB_ROOT.list" >> "$log" 2>&1
}

# prepare makes the root file system unless it is there. Idempotent; a second caller waits for the first.
prepare() {
  local log=$LAB_ROOT.log t0
  root_ready && return 0
  mkdir -p "$(dirname "$LAB_ROOT")"
  exec 8> "$LAB_ROOT.lock"
  flock -n 8 || { progress "another prepare is running: waiting for it"; flock 8; }
  root_ready && { exec 8>&-; return 0; }
  retire_check
  t0=$(now)
  : > "$log"
  update_host_lists "$log"
  install_tools "$log"
  progress "making the root file system: Debian $LAB_GENERATION and ${#PACKAGES[@]} packages (about a minute; log: $log)"
  rm -rf --one-file-system "$LAB_ROOT.new"
  make_root "$log" || fail "mmdebstrap could not make the root file system" "$log"
  rm -rf --one-file-system "$LAB_ROOT"
  root_fingerprint > "$LAB_ROOT.new/$ROOT_MARKER"
  mv "$LAB_ROOT.new" "$LAB_ROOT"
  rm -f "$LAB_ROOT".{hook,list}
  exec 8>&-
  progress_done "$t0" "root file system $LAB_ROOT, $(du -sh "$LAB_ROOT" | cut -f1)"
}

# retire_check: an outdated root file system is made again, but never under running daemons.
retire_check() {
  [ -e "$LAB_ROOT" ] || return 0
  any_alive && die "the root file system is out of date and its daemons run: first 'lab down $LAB_GENERATION'"
  progress "the root file system is out of date"
}
