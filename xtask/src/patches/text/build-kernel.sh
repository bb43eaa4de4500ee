# Runs in the toolbox: builds, in the tree "$1" that holds proof.config, the kernel with "$2" jobs.
set -x
cd "$1"
make KCONFIG_ALLCONFIG=proof.config allnoconfig
# An option whose dependencies are not met vanishes without a word.
missing=$(grep -E '^CONFIG_' proof.config | grep -vxF -f .config || true)
test -z "$missing" || { printf 'not taken into the configuration:\n%s\n' "$missing"; exit 1; }
make "-j$2" bzImage
