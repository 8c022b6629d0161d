#!/usr/bin/env bash
# Makes etcd and kube-apiserver for run.sh, from Debian 12's packages and its sources of Kubernetes 1.20.2. Debian ships no kube-apiserver.
#
#   tests/kube/build.sh FOLDER      the programs are in FOLDER afterwards; what is there already is left as it is
#
# JOBS   how many cores the build may use (default: all). On one core it takes about ten minutes, and 3 GB of disk while it lasts.
#
# Nothing is installed: packages are unpacked beside FOLDER, and apt has lists and a configuration of its own there. What is missing is named,
# and the script ends with code 77. A kube-apiserver of any other version serves as well: put it into FOLDER.
set -euo pipefail

skip() { echo "SKIPPED: $*" >&2; exit 77; }
say() { echo "== $*" >&2; }

(($# == 1)) || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
bin=$(realpath "$1")
if [[ -x $bin/etcd && -x $bin/kube-apiserver ]]; then exit; fi
for tool in apt-get dpkg dpkg-source gcc make patch; do command -v "$tool" >/dev/null || skip "$tool is not installed (Debian: dpkg-dev, gcc, make, patch)"; done
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -f $keys ]] || skip "there is no $keys (Debian: debian-archive-keyring)"
# The mirror that this machine uses. The suite is fixed, since its Go builds its Kubernetes.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 'Created-By: Packages' | head -n 1)
[[ -n $mirror ]] || skip "apt knows no mirror of Debian; apt-get update may help"

work=$bin.build
apt=$work/apt root=$work/root source=$work/kubernetes jobs=${JOBS:-$(nproc)}
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial} "$root" "$work/debs"
: >"$apt/status"
printf '%s [signed-by=%s] %s bookworm main\n' deb "$keys" "$mirror" deb-src "$keys" "$mirror" >"$apt/sources.list"
cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "root";
END
export APT_CONFIG=$apt/apt.conf
say "fetching etcd, Go 1.19 and the sources of Kubernetes"
apt-get -qq update || skip "Debian's lists cannot be fetched"
packages=(golang-1.19-go golang-1.19-src etcd-server rsync libpopt0 libxxhash0 golang-github-modern-go-reflect2-dev)
(cd "$work/debs" && apt-get -qq download "${packages[@]}") || skip "Debian 12 has not all of: ${packages[*]}"
for package in "${packages[@]}"; do dpkg -x "$work/debs/${package}"_*.deb "$root"; done
install "$root/usr/bin/etcd" "$bin/etcd"

if [[ ! -d $source ]]; then
    rm -rf "$source.part"
    (cd "$work/debs" && apt-get -qq source --download-only kubernetes) || skip "Debian 12's sources of Kubernetes cannot be fetched"
    dpkg-source --no-check -x "$work"/debs/kubernetes_*.dsc "$source.part" >"$work/unpack.log"
    # reflect2 1.0.1, which Kubernetes has with it, crashes when built by Go 1.18 and later. Debian's 1.0.2 does not.
    vendored=$source.part/vendor/github.com/modern-go/reflect2
    rm -f "$vendored"/*.go "$vendored"/*.s
    cp "$root"/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendored/"
    mkdir -p "$source.part/.go/src/k8s.io"
    ln -sfn ../../.. "$source.part/.go/src/k8s.io/kubernetes"
    mv "$source.part" "$source"
fi

# The build calls rsync, whose libraries are not the system's.
mkdir -p "$work"/{wrap,home,tmp}
printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$root/usr/lib/$(gcc -print-multiarch)" "$root/usr/bin/rsync" >"$work/wrap/rsync"
chmod +x "$work/wrap/rsync"
say "building kube-apiserver; the log is $work/build.log"
(
    cd "$source"
    export GOROOT=$root/usr/lib/go-1.19 GOPATH=$source/.go HOME=$work/home TMPDIR=$work/tmp
    export CGO_ENABLED=0 GOFLAGS=-p=$jobs GOMAXPROCS=$jobs GOPROXY=off GOSUMDB=off
    PATH=$GOROOT/bin:$work/wrap:$PATH make WHAT=cmd/kube-apiserver
) >"$work/build.log" 2>&1 || { tail -n 20 "$work/build.log" >&2; exit 1; }
install "$source/_output/bin/kube-apiserver" "$bin/kube-apiserver"
# Go marks what it has unpacked as read-only.
chmod -R u+w "$work" && rm -rf "$work"
say "built: $("$bin/kube-apiserver" --version), $("$bin/etcd" --version | head -n 1)"
