# Runs in the toolbox: builds, in the empty directory "$1", the kernel's own test
# program of HMM from the source of series "$2", with "$3" jobs. Sources that are
# kept are those that were compiled.
set -x
cd "$1"
source=linux-source-$2
# What the program and the kernel's headers are made of, and nothing else.
tar xf "/usr/src/$source.tar.xz" "$source/Makefile" "$source/Kbuild" "$source/arch/x86" \
	"$source/include" "$source/lib/test_hmm_uapi.h" "$source/mm/gup_test.h" \
	"$source/scripts" "$source/tools/include" "$source/tools/testing/selftests"
make -C "$source" "-j$3" headers
(
	cd "$source/tools/testing/selftests/mm"
	# The options of the Makefile there, which itself wants to build everything.
	gcc -static -O2 -Wall -U_FORTIFY_SOURCE -D_GNU_SOURCE= -I../../../.. -I../../../../mm \
		-isystem ../../../../usr/include -I../../../../tools/include -I.. -I. \
		hmm-tests.c vm_util.c hugepage_settings.c -lrt -lpthread -lm -o "$1/hmm-tests"
)
cp "$source/tools/testing/selftests/mm/hmm-tests.c" .
rm -r "$source"
