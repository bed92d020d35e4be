#!/bin/sh
# Makes what `make vm` boots, in a cache directory: Debian's kernel, a small initial RAM disk and a root file
# system with Debian's systemd. Packages are unpacked there and never installed. Prints the directory.
set -eu

packages='linux-image-amd64 systemd systemd-sysv udev dbus kmod iproute2 nftables firewalld netbase busybox-static xz-utils'
early='virtio_pci virtio_blk virtio_console ext4 overlay' # modules that the initial RAM disk loads

say() { echo "vm-image: $*" >&2; }

cache=${HEDDLE_VM_CACHE:-${XDG_CACHE_HOME:-/var/cache}/heddle-vm}
self=$(readlink -f "$0")
image=$cache/$(sha256sum "$self" | cut -c1-12)
if [ -e "$image/done" ]; then
	touch "$image/done"
	echo "$image"
	exit 0
fi
[ "$(id -u)" = 0 ] || { say 'unpacking a root file system needs root; type it again as root'; exit 1; }
[ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || { say "needs Debian's packages for amd64"; exit 1; }

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
[ ! -e "$image/done" ] || exec "$self" # made by another run meanwhile
work=$cache/work
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work/apt/partial" "$work/root" "$work/image"
cd "$work"

# apt is told that nothing is installed, so it finds and checks the whole closure.
say "fetching Debian's kernel and systemd into $cache"
apt-get -qq update
# shellcheck disable=SC2086
apt-get -qq -y -o Dir::State::status=/dev/null -o Dir::State::extended_states="$work/states" \
	-o Dir::Cache="$work" -o APT::Sandbox::User=root -o Dir::Cache::archives=apt -o APT::Install-Recommends=0 -o Debug::NoLocking=1 \
	--download-only install '?essential' $packages >/dev/null

say 'unpacking'
for d in bin sbin lib lib64; do
	mkdir -p "root/usr/$d"
	ln -s "usr/$d" "root/$d"
done
mkdir root/var
ln -s /run root/var/run
for deb in apt/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C root --keep-directory-symlink --numeric-owner -f - \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
done

# What the packages' scripts would have done and this root needs.
cp root/usr/share/base-passwd/passwd.master root/etc/passwd
cp root/usr/share/base-passwd/group.master root/etc/group
chroot root systemd-sysusers >&2 2>/dev/null
chroot root ldconfig
ln -s /proc/self/mounts root/etc/mtab
touch root/etc/fstab
ln -s org.fedoraproject.FirewallD1.server.policy.choice root/usr/share/polkit-1/actions/org.fedoraproject.FirewallD1.policy
mkdir -p root/var/lib/heddle
chroot root python3 -m compileall -q /usr/lib/python3 # firewalld starts in half the time

# Only drivers that a host under qemu can meet. A module that is not there is not looked for: without
# cfg80211, say, networkd is up a second earlier.
modules=$(echo root/lib/modules/*)
release=${modules##*/}
(
	cd "$modules/kernel"
	rm -rf sound
	for d in drivers/* drivers/net/*/ net/*; do
		case ${d%/} in
		drivers/net | drivers/virtio | drivers/block | drivers/char) ;;
		drivers/net/vxlan | drivers/net/wireguard | drivers/net/bonding | drivers/net/ipvlan) ;;
		net/802 | net/8021q | net/bridge | net/core | net/dsa | net/ipv4 | net/ipv6 | net/key | net/llc | net/mpls | net/netfilter | net/packet | net/psample | net/sched | net/unix | net/xfrm) ;;
		*) rm -rf "$d" ;;
		esac
	done
)
chroot root depmod "$release"

# The boot is that of a server, less what a host without screen, users and odd file systems can do without:
# under emulation it counts.
units=root/etc/systemd/system
for unit in \
	modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
	modprobe@fuse.service modprobe@loop.service systemd-binfmt.service systemd-journal-flush.service \
	systemd-logind.service systemd-pstore.service systemd-random-seed.service systemd-sysusers.service \
	systemd-tmpfiles-clean.timer systemd-update-utmp.service systemd-update-utmp-runlevel.service \
	systemd-user-sessions.service systemd-ask-password-console.path systemd-ask-password-wall.path \
	systemd-initctl.socket dev-hugepages.mount dev-mqueue.mount sys-kernel-config.mount sys-kernel-debug.mount \
	sys-kernel-tracing.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount getty.target; do
	ln -s /dev/null "$units/$unit"
done
mkdir "$units/systemd-udev-trigger.service.d"
cat >"$units/systemd-udev-trigger.service.d/few.conf" <<'END'
[Service]
ExecStart=
ExecStart=udevadm trigger --type=devices --action=add --subsystem-match=net --subsystem-match=virtio
END
rm root/lib/systemd/system-generators/* # they run anew at each daemon-reload
chroot root systemctl -q enable systemd-networkd
chroot root systemctl -q set-default multi-user.target

# The kernel as it is inside its compressed file, at the offset that its header names: the emulated machine
# would take two seconds to unpack it.
say 'making kernel, initial RAM disk and root file system'
kernel=root/boot/vmlinuz-$release
number() { od -An -t "u$2" -j "$1" -N "$2" "$kernel" | tr -d ' '; }
offset=$((($(number 497 1) + 1) * 512 + $(number 584 4)))
tail -c "+$((offset + 1))" "$kernel" | head -c "$(($(number 588 4) - 4))" |
	chroot root xz -dc >image/vmlinux

# The initial RAM disk lays a machine's own disk over the root file system that all share.
mkdir -p ram/bin ram/proc ram/dev ram/modules ram/shared ram/disk ram/root
cp root/bin/busybox ram/bin
# shellcheck disable=SC2086
chroot root modprobe -S "$release" -a -D $early | awk '$1 == "insmod" && !seen[$2]++ { printf "%02d %s\n", ++n, $2 }' |
	while read -r n module; do cp "root$module" "ram/modules/$n"; done
cat >ram/init <<'END'
#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for m in /modules/*; do busybox insmod "$m"; done
busybox mount -t ext4 -o ro /dev/vda /shared
busybox mount -t ext4 /dev/vdb /disk
busybox mount -t overlay -o lowerdir=/shared,upperdir=/disk/upper,workdir=/disk/work root /root
busybox mount --bind /disk/state /root/var/lib/heddle
busybox umount /proc
busybox mount --move /dev /root/dev
exec busybox switch_root /root /sbin/init
END
chmod 755 ram/init
(cd ram && find . | ./bin/busybox cpio -o -H newc 2>/dev/null) >image/initrd

rm -rf root/boot
mke2fs -q -t ext4 -O ^has_journal -d root image/root.ext4 700M >&2
touch image/done
find "$cache" -mindepth 2 -maxdepth 2 -name done -mtime +7 -printf '%h\0' | xargs -0r rm -rf # images of other versions
mv image "$image"
echo "$image"
