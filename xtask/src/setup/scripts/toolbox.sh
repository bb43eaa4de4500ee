# Runs on the host when mmdebstrap has made the root "$1"; $series is set.
#
# Adds what comes from backports. A second step, because one with mixed suites
# does not resolve; and rustc and bindgen must stay those of the release, which
# built the stock kernel.
set -eux
root=$1

sed -n 's/^\(deb .*\) trixie main.*$/\1 trixie-backports main/p' "$root/etc/apt/sources.list" |
	head -n 1 >"$root/etc/apt/sources.list.d/backports.list"
test -s "$root/etc/apt/sources.list.d/backports.list"
chroot "$root" apt-get update

release=$(chroot "$root" apt-cache search --names-only \
	"^linux-image-$(echo "$series" | sed 's/\./\\./')\.[0-9]+\+deb13-amd64\$" |
	sed -n 's/^linux-image-\([^ ]*\) .*/\1/p' | sort -V | tail -n 1)
test -n "$release" || { echo "Debian offers no linux-image-$series.* for amd64"; exit 1; }

chroot "$root" apt-get install -y --no-install-recommends -t trixie-backports \
	"linux-source-$series" "linux-headers-$release" qemu-system-x86 ipxe-qemu

# Unpacked, not installed: a bare root has no use for an initramfs generator.
chroot "$root" sh -eux -c '
	mkdir -p /image /tmp/image
	cd /tmp/image
	apt-get download "linux-image-$1" $(apt-cache depends --important "linux-image-$1" |
		sed -n "s/^ *Depends: \(linux-[a-z]*-$1\)\$/\1/p")
	for package in *.deb; do
		dpkg-deb -x "$package" /image
	done
	rm -r /tmp/image
	ln -sT usr/lib /image/lib
	depmod -b /image "$1"
' sh "$release"

# The smallest guest there is: it proves that a machine can boot the kernel.
chroot "$root" sh -eux -c '
	mkdir -p /tmp/probe/dev
	cp /bin/busybox /tmp/probe/busybox
	printf "%s\n" "#!/busybox sh" "/busybox mount -t devtmpfs dev /dev" \
		"echo userspace reached >/dev/console" "/busybox poweroff -f" >/tmp/probe/init
	chmod +x /tmp/probe/init
	cd /tmp/probe
	find . | cpio -o -H newc >/probe.cpio
	rm -r /tmp/probe
'

mkdir -p "$root/build"
echo "$release" >"$root/kernel-release"
