# Runs in the toolbox: prepares the empty directory "$1" so that modules built
# there fit the stock kernel of release "$2"; "$3" the archive of its sources,
# "$4" the directory of its headers; "$5" jobs.
set -x
cd "$1"
localversion="+${2#*+}"
tar xf "$3" --strip-components=1
cp "$4/.config" "$4/Module.symvers" .
# The signing keys are Debian's; modules of this tree are unsigned.
scripts/config --set-str SYSTEM_TRUSTED_KEYS '' --set-str MODULE_SIG_KEY certs/signing_key.pem
make "LOCALVERSION=$localversion" olddefconfig
grep -qx CONFIG_RUST=y .config || { make rustavailable; exit 1; }
make "-j$5" "LOCALVERSION=$localversion" modules_prepare
test "$(make -s "LOCALVERSION=$localversion" kernelrelease)" = "$2"
