# Runs in the toolbox, as a user who may be root there alone: unpacks the newest stock kernel of
# series "$2" into the empty directory "$1".
set -x
cd "$1"
mkdir -p apt/lists/partial apt/cache/archives/partial packages root
cat >apt/apt.conf <<CONF
Dir::State::lists "$1/apt/lists";
Dir::Cache "$1/apt/cache";
APT::Sandbox::User "root";
CONF
export APT_CONFIG="$1/apt/apt.conf"
apt-get update
release=$(apt-cache search --names-only \
	"^linux-image-$(echo "$2" | sed 's/\./\\./')\.[0-9]+\+deb13-amd64\$" |
	sed -n 's/^linux-image-\([^ ]*\) .*/\1/p' | sort -V | tail -n 1)
test -n "$release" || { echo "Debian offers no linux-image-$2.* for amd64"; exit 1; }

# Not installed: nothing here configures a kernel.
(
	cd packages
	apt-get download "linux-source-$2" "linux-headers-$release" "linux-image-$release" \
		$(apt-cache depends --important "linux-image-$release" |
			sed -n "s/^ *Depends: \(linux-[a-z]*-$release\)\$/\1/p")
)
for package in packages/*.deb; do
	dpkg-deb -x "$package" root
done
test -e root/lib || ln -sT usr/lib root/lib
depmod -b "$PWD/root" "$release"
rm -r apt packages
echo "$release" >kernel-release
