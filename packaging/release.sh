#!/usr/bin/env bash
# Makes what a release consists of, in a folder: an archive with the binary, a Debian package, and their checksums.
#
#   packaging/release.sh [FOLDER]      default: target/release-VERSION
#
# It needs musl's compiler (Debian's musl-tools) and Rust's standard library for it (rustup target add
# x86_64-unknown-linux-musl); for the package, dpkg-deb. It asks no network but cargo's.
# TARGET    x86_64-unknown-linux-musl (the default): the binary is static and runs on any Linux. x86_64-unknown-linux-gnu: it takes less CPU
#           time, and runs where the C library is as new as here.
# PROFILE   the build's profile (default release); `dev` tries the script itself.
# PGO=0     builds without a profile of a running forebay (profile.sh), which needs rustup's component llvm-tools and takes two builds more.
# BINARY    a forebay that is there already, in place of a build. It tries the rest of the script: what it makes is no release,
#           unless the binary is static.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${TARGET:-x86_64-unknown-linux-musl}
profile=${PROFILE:-release}
pgo=${PGO:-1}
[ "$profile" = release ] || pgo=0
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
out=${1:-target/release-$version}
name=forebay-$version-x86_64-linux depends=
case $target in
x86_64-unknown-linux-musl) ;;
x86_64-unknown-linux-gnu)
    name+=-gnu
    depends="libc6 (>= $(ldd --version | sed -n '1s/.* //p')), libgcc-s1"
    ;;
*)
    echo "release.sh: TARGET is $target; x86_64-unknown-linux-musl and x86_64-unknown-linux-gnu are expected" >&2
    exit 2
    ;;
esac

die() {
    echo "release.sh: $*" >&2
    exit 1
}

# All that is missing at once, before anything is built.
missing=()
if [ -z "${BINARY:-}" ]; then
    command -v cargo >/dev/null || missing+=("cargo is not installed: see https://rustup.rs")
    [ -n "$depends" ] || command -v musl-gcc >/dev/null || missing+=("musl-gcc is not installed: apt-get install musl-tools")
    library=$(rustc --print target-libdir --target "$target" 2>/dev/null || true)
    profdata=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-profdata
    [ "$pgo" = 0 ] || [ -x "$profdata" ] || missing+=("llvm-profdata is not installed: rustup component add llvm-tools, or PGO=0")
    [ -d "$library" ] || missing+=("Rust has no library for $target: rustup target add $target")
elif [ ! -x "$BINARY" ]; then
    missing+=("$BINARY is no program: build it first")
fi
for tool in dpkg-deb ldd sha256sum; do
    command -v "$tool" >/dev/null || missing+=("$tool is not installed: apt-get install dpkg libc-bin coreutils")
done
if [ "${#missing[@]}" -gt 0 ]; then
    printf 'release.sh: %s\n' "${missing[@]}" >&2
    exit 1
fi
[ -z "$(git status --porcelain 2>/dev/null)" ] || echo "release.sh: the checkout has changes that its commit does not have" >&2

binary=${BINARY:-}
if [ -z "$binary" ]; then
    if [ "$pgo" != 0 ]; then
        measured=${CARGO_TARGET_DIR:-$PWD/target}/$target.profdata
        packaging/profile.sh "$measured" --target "$target"
        export RUSTFLAGS="${RUSTFLAGS:-} -Cprofile-use=$measured"
    fi
    cargo build --profile "$profile" --locked --target "$target" --bin forebay
    folder=$profile
    [ "$profile" != dev ] || folder=debug
    binary=${CARGO_TARGET_DIR:-target}/$target/$folder/forebay
fi
# Nothing of this machine is needed where it runs.
if [ -z "$depends" ] && ldd "$binary" 2>/dev/null | grep -q '=>'; then
    [ -n "${BINARY:-}" ] || die "$binary is not static, so it would not run elsewhere: is musl-gcc the linker of $target?"
    echo "release.sh: $binary is not static: this is no release" >&2
fi
"$binary" --version

mkdir -p "$out"
out=$(cd "$out" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"

# What the archive and the package share, under a prefix.
lay() { # ROOT BIN MAN DOC
    install -D -m 755 "$binary" "$1/$2/forebay"
    install -D -m 644 LICENSE "$1/$4/LICENSE"
    install -m 644 README.md CHANGELOG.md "$1/$4"
    mkdir -p "$1/$3"
    "$binary" man --out "$1/$3"
}

tree=$stage/$name
lay "$tree" bin share/man/man1 .
for shell in bash zsh fish; do
    mkdir -p "$tree/completions"
    "$binary" completions "$shell" >"$tree/completions/forebay.$shell"
done
install -D -m 644 config/forebay.toml "$tree/config/forebay.toml"
install -m 644 config/systemd/forebay@.service config/systemd/forebay.conf "$tree/config"
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner -czf "$out/$name.tar.gz" "$name"

deb=$stage/deb
lay "$deb" usr/bin usr/share/man/man1 usr/share/doc/forebay
gzip -9n "$deb"/usr/share/man/man1/*.1
install -D -m 644 config/forebay.toml "$deb/etc/forebay/forebay.toml"
mkdir -p "$deb/lib/systemd/system" "$deb/usr/share/bash-completion/completions" "$deb/usr/share/zsh/vendor-completions"
sed 's|/usr/local/bin/|/usr/bin/|' config/systemd/forebay@.service >"$deb/lib/systemd/system/forebay@.service"
"$binary" completions bash >"$deb/usr/share/bash-completion/completions/forebay"
"$binary" completions zsh >"$deb/usr/share/zsh/vendor-completions/_forebay"
mkdir "$deb/DEBIAN"
cat >"$deb/DEBIAN/control" <<END
Package: forebay
Version: $version
Architecture: amd64
Maintainer: The Forebay maintainers <forebay@invalid>
${depends:+Depends: $depends
}Section: net
Priority: optional
Installed-Size: $(du -sk --exclude=DEBIAN "$deb" | cut -f1)
Description: load-balancing reverse proxy for vLLM servers
 Forebay routes streaming requests by queue depth and measured time to first
 token, and exports latency by backend and by arm.
END
# The operator's file is kept in an upgrade of the package.
echo /etc/forebay/forebay.toml >"$deb/DEBIAN/conffiles"
cat >"$deb/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ] && ! getent passwd forebay >/dev/null; then
    useradd --system --no-create-home --shell /usr/sbin/nologin forebay
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
END
chmod 755 "$deb/DEBIAN/postinst"
dpkg-deb --root-owner-group --build "$deb" "$out/forebay_${version}_amd64.deb"

(cd "$out" && sha256sum ./*.tar.gz ./*.deb >SHA256SUMS)
ls -l "$out"
