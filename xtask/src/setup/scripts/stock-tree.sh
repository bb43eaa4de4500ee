# Runs in the toolbox: prepares the empty directory "$1" so that modules built
# there fit the stock kernel of release "$2"; series "$3"; "$4" jobs.
set -x
cd "$1"
localversion="+${2#*+}"
tar xf "/usr/src/linux-source-$3.tar.xz" --strip-components=1
cp "/usr/src/linux-headers-$2/.config" "/usr/src/linux-headers-$2/Module.symvers" .
# The signing keys are Debian's; modules of this tree are unsigned.
scripts/config --set-str SYSTEM_TRUSTED_KEYS '' --set-str MODULE_SIG_KEY certs/signing_key.pem
make "LOCALVERSION=$localversion" olddefconfig
grep -qx CONFIG_RUST=y .config || { make rustavailable; exit 1; }
make "-j$4" "LOCALVERSION=$localversion" modules_prepare
test "$(make -s "LOCALVERSION=$localversion" kernelrelease)" = "$2"
