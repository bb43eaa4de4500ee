//! The harness notices what it must notice.

use hmm_tests::artifacts::Artifacts;
use hmm_tests::vm::Vm;

#[test]
fn first() {
    let artifacts = Artifacts::from_environment().unwrap();
    let vm = Vm::builder(&artifacts).devices(0).start().unwrap();
    let output = vm
        .run(["sh", "-c", "echo hello; echo oops >&2; uname -r; exit 3"])
        .unwrap();
    println!("{output:?}");
    vm.finish().unwrap();
}
