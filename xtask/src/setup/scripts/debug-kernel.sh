# Runs in the toolbox: builds, in the directory "$1" that holds debug.config,
# a kernel of series "$2" with "$3" jobs. clang, because Rust with KASAN needs it.
set -x
cd "$1"
tar xf "/usr/src/linux-source-$2.tar.xz" --strip-components=1
make LLVM=1 KCONFIG_ALLCONFIG=debug.config allnoconfig
# An option whose dependencies are not met vanishes without a word.
missing=$(grep -E '^CONFIG_' debug.config | grep -vxF -f .config || true)
test -z "$missing" || { printf 'not taken into the configuration:\n%s\n' "$missing"; exit 1; }
make LLVM=1 "-j$3" bzImage modules
make -s LLVM=1 kernelrelease >release
