# Runs in the toolbox: builds, in the directory "$1" that holds glue.c, what the
# kernel's tests of HMM want from a kernel that was built without it, against the tree
# "$2", with "$3" jobs; then make's own arguments.
set -x
cd "$1"
tree=$2
jobs=$3
shift 3
cp "$tree/lib/test_hmm.c" "$tree/lib/test_hmm_uapi.h" "$tree/mm/gup_test.c" "$tree/mm/gup_test.h" .
# The kernel's build knows gup_test as a part of the kernel only, so that it lacks the
# header that knows how modules begin.
cat >Kbuild <<-END
	obj-m := test_hmm.o gup_test_module.o
	gup_test_module-y := gup_test.o glue.o
	CFLAGS_gup_test.o := -include linux/module.h
END
make -C "$tree" "-j$jobs" M="$PWD" "$@" modules
