# shellcheck shell=bash
# apt-get on the host, where it may be busy. Sourced by lab and by deployments/deps.

# patient_apt ARG…: apt-get, silent unless it fails. Waits up to five minutes for another one: apt's own patience is for
# the lock of dpkg alone, and a fresh machine's daily update holds that of the package lists soon after boot.
patient_apt() {
  local out deadline=$((SECONDS + 300))
  until out=$(DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" 2>&1); do
    if [[ $out != */lists/lock* ]] || [ "$SECONDS" -ge "$deadline" ]; then
      printf '%s\n' "$out" >&2
      return 1
    fi
    sleep 3
  done
}

# install_packages NAME…: with fresh lists, since a fresh machine has none and an old one's are of yesterday.
install_packages() { patient_apt update && patient_apt install -y --no-install-recommends "$@"; }
