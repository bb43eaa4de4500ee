# Runs where modules are built for the kernel: builds, in the directory "$1" that holds glue.c, what the
# kernel's tests of HMM want from a kernel that was built without it, against the tree
# "$2", from the kernel's sources "$3", with "$4" jobs; then make's own arguments.
set -x
cd "$1"
tree=$2
source=$3
jobs=$4
shift 4
for each in lib/test_hmm.c lib/test_hmm_uapi.h mm/gup_test.c mm/gup_test.h; do
	cp "$source/$each" .
done
# The kernel's build knows gup_test as a part of the kernel only, so that it lacks the
# header that knows how modules begin.
cat >Kbuild <<-END
	obj-m := test_hmm.o gup_test_module.o
	gup_test_module-y := gup_test.o glue.o
	CFLAGS_gup_test.o := -include linux/module.h
END
make -C "$tree" "-j$jobs" M="$PWD" "$@" modules
