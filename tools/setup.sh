#!/bin/sh
# Installs what the tests need and the machine lacks, or says the line to type.
set -eu
missing=
command -v ip >/dev/null || missing="$missing iproute2"
command -v nft >/dev/null || missing="$missing nftables"
command -v iptables-nft >/dev/null || missing="$missing iptables"
command -v dockerd >/dev/null || missing="$missing docker.io"
command -v wg >/dev/null || missing="$missing wireguard-tools"
command -v mke2fs >/dev/null || missing="$missing e2fsprogs"
[ "$(uname -m)" != x86_64 ] || command -v qemu-system-x86_64 >/dev/null || missing="$missing qemu-system-x86"
command -v iperf3 >/dev/null || missing="$missing iperf3"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing$missing"
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # no service is started
	apt-get -qq update
	# shellcheck disable=SC2086
	apt-get -qq install -y --no-install-recommends $missing >/dev/null
else
	echo "The tests need more programs. Type as root: apt-get install$missing" >&2
	exit 1
fi
