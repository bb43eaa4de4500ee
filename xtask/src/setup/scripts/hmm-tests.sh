# Runs in the toolbox: builds, in the empty directory "$1", the kernel's own test
# program of HMM from the kernel's sources "$2", a directory or an archive, with "$3"
# jobs. Sources that are kept are those that were compiled.
set -x
cd "$1"
source=linux
mkdir "$source"
# What the program and the kernel's headers are made of, and nothing else.
parts="Makefile Kbuild arch/x86 include lib/test_hmm_uapi.h mm/gup_test.h scripts tools/include
	tools/testing/selftests"
if test -d "$2"; then
	# What was built there, for another machine, is built again.
	(cd "$2" && tar cf - --exclude='*.o' --exclude='*.a' --exclude='*.cmd' \
		--exclude='vmlinux*' --exclude='bzImage' $parts) | tar xf - -C "$source"
else
	root=$(basename "$2" .tar.xz)
	tar xf "$2" -C "$source" --strip-components=1 $(printf "$root/%s " $parts)
fi
# A test's limit is made for real processors. An emulated one that shares the machine with others
# gets ten times as long; a test that hangs is still ended. The benchmark keeps its own limit.
harness="$source/tools/testing/selftests/kselftest_harness.h"
sed -i 's/^#define TEST_TIMEOUT_DEFAULT 30\b.*/#define TEST_TIMEOUT_DEFAULT 300/' "$harness"
grep -qx '#define TEST_TIMEOUT_DEFAULT 300' "$harness"
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
