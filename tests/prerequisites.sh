#!/usr/bin/env bash
# Gets the programs that some tests run against: a real web server, a tracer of system calls, openssl's own tool, and
# a browser, and what compiles and mounts benchmarks/slowvol.
# As root on Debian what is missing is installed; elsewhere it is named, and its tests are skipped (not where CI=true).
set -uo pipefail

declare -A package=([chromium]=chromium [nginx]=nginx-light [strace]=strace [openssl]=openssl
    [cc]=build-essential [pkg-config]=pkg-config [fusermount3]=fuse3 [libfuse3]=libfuse3-dev)

missing() {
    local program
    for program in chromium nginx strace openssl cc pkg-config fusermount3; do
        # Debian keeps servers in sbin, which is not in everybody's PATH.
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || echo "$program"
    done
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3
}

install_missing() {
    local policy=/usr/sbin/policy-rc.d log status=0
    log=$(mktemp)
    # invoke-rc.d asks this file before it starts what was just installed; 101 forbids it (policy-rc.d(8)).
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
        # shellcheck disable=SC2064  # expanded now: $policy is local
        trap "rm -f '$policy'" EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null || status=$?
    [[ $status -eq 0 ]] || { tail -n 5 "$log" >&2; echo "prerequisites: apt-get exited with $status" >&2; }
    rm -f "$log"
}

# In a container of GitHub the clone belongs to another user, and git, which some tests ask, would refuse it.
[[ -n ${GITHUB_WORKSPACE:-} ]] && git config --global --add safe.directory "$GITHUB_WORKSPACE"

mapfile -t absent < <(missing)
if [[ ${#absent[@]} -gt 0 && $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    packages=()
    for program in "${absent[@]}"; do packages+=("${package[$program]}"); done
    echo "prerequisites: installing ${packages[*]}"
    install_missing "${packages[@]}"
    mapfile -t absent < <(missing)
fi
[[ ${#absent[@]} -eq 0 ]] && exit 0
echo "prerequisites: missing ${absent[*]}; the tests that need them are skipped" >&2
[[ ${CI:-} != true ]]
