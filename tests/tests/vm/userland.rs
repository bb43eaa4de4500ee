//! Debian's programs in a guest.

use hmm_vm::artifacts::Artifacts;
use hmm_vm::vm::{Vm, USERLAND};

#[test]
fn a_guest_runs_debians_programs_and_cannot_change_them() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts)
        .devices(0)
        .userland()
        .start()
        .unwrap();
    let run = |words: &[&str]| {
        let command: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        vm.run(&*command).unwrap()
    };
    for (command, answer) in [
        // Its libraries for linear algebra are found by links in /etc.
        (
            &[
                "python3",
                "-c",
                "import numpy; print(numpy.eye(3) @ [1, 2, 3])",
            ][..],
            "[1. 2. 3.]\n",
        ),
        (&["sqlite3", ":memory:", "select 6 * 7"], "42\n"),
        (&["sh", "-c", "echo text | zstd | zstd -d"], "text\n"),
        (&["bash", "-c", "echo ${BASH##*/}"], "bash\n"),
        (&["gdb", "-batch", "-ex", "print 6 * 7"], "$1 = 42\n"),
    ] {
        let output = run(command).succeeded();
        assert_eq!(output.unwrap(), answer, "{command:?}");
    }
    let traced = run(&["strace", "-e", "write", "echo", "traced"]);
    assert_eq!(traced.text(), "traced\n");
    let calls = String::from_utf8_lossy(&traced.stderr);
    assert!(calls.contains(r#"write(1, "traced\n""#), "{calls}");
    for program in ["bpftrace", "perf", "redis-server", "stress-ng"] {
        let output = run(&[program, "--version"]);
        // Each finds its libraries.
        assert!(output.success(), "{program}: {output:?}");
    }
    assert!(!run(&["touch", "/usr/bin/new"]).success());
    assert!(!run(&["rm", &format!("{USERLAND}/etc/debian_version")]).success());
    // What the guest has itself comes first.
    let passwd = run(&["cat", "/etc/passwd"]).succeeded().unwrap();
    assert_eq!(passwd.lines().count(), 1, "{passwd}");
    vm.finish().unwrap();
}
