//! Programs that know nothing of the device, while it moves, reads and writes their memory.
//!
//! They are Debian's own. Each checks itself, and must end as it would without the device.

use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::{Command, Output, Status};
use hmm_vm::vm::{Builder, Vm, GIB, MIB};
use serde_json::Value;

use super::support::{self, assert_nothing_left_or_lost, run};

/// The exit status of `hmm chaos` if the device has read something else than the CPU, and if it
/// could not do its work.
const DIFFERENT: i32 = 120;
const FAILED: i32 = 125;

/// How long a program may take, on a machine with KVM: six times what one takes on an emulated
/// machine that has its processors for itself.
const LIMIT: Duration = Duration::from_secs(180);

/// A database that is filled, changed and packed. The sum of its contents follows from how it was
/// made: those of the numbers to 20,000 that three does not divide.
const SQLITE: &str = r#"cd /tmp && sqlite3 -batch t.db "
    PRAGMA journal_mode = WAL;
    CREATE TABLE t (n INTEGER PRIMARY KEY, square INTEGER, text TEXT);
    CREATE INDEX i ON t (text);
    WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000)
        INSERT INTO t SELECT n, n * n, hex(n * 7919) FROM c;
    UPDATE t SET square = -square WHERE n % 3 = 0;
    DELETE FROM t WHERE square < 0;
    VACUUM;
    REINDEX;
    PRAGMA integrity_check;
    SELECT count(*), sum(square), count(DISTINCT text) FROM t;" > out &&
    tail -n 2 out && test "$(tail -n 2 out | head -n 1)" = ok && test "$(tail -n 1 out)" = "13334|1778044451111|13334""#;

/// Numbers, compressed by two threads and decompressed again.
const ZSTD: &str = "cd /tmp && seq 1 1000000 > numbers && zstd -q -T2 -9 numbers -o packed && \
    zstd -q -d packed -o again && cmp numbers again && zstd -q -t packed && rm numbers again packed";

const PYTHON: &str = "cd /tmp && python3 -m test -v test_gc test_dict";

/// Not as root, because `madvise` would then poison memory; and as root, because others may have no
/// userfaultfd. A stressor that is skipped has failed.
const STRESS: &str = r#"cd /tmp
    stress() {
        "$@" --verify --timeout 8s > log 2>&1; result=$?
        cat log; rm log
        return $result
    }
    all=$(stress /usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups stress-ng --vm 1 --vm-bytes 32M \
        --mmap 1 --mmap-bytes 16M --mremap 1 --mremap-bytes 8M --madvise 1 --fork 1 &&
        stress stress-ng --userfaultfd 1 --userfaultfd-bytes 4M); result=$?
    echo "$all"
    test $result = 0 && test "$(echo "$all" | grep -c 'skipped: 0')" = 2"#;

/// The digest of all data is the same after it is loaded from a snapshot that a child has written,
/// and from a log that another child has written anew.
const REDIS: &str = r#"cd /tmp && mkdir redis && redis-server --port 0 --unixsocket /tmp/redis.sock \
    --dir /tmp/redis --save '' --enable-debug-command yes --daemonize no > redis.log 2>&1 &
    cli() { redis-cli -s /tmp/redis.sock "$@"; }
    until cli ping 2> /dev/null | grep -q PONG; do sleep 0.1; done
    settled() { until cli info persistence | grep -q "$1:0"; do sleep 0.1; done; }
    cli debug populate 20000 key 100 && cli mset one 1 two 2 && first=$(cli debug digest) &&
    cli bgsave && settled rdb_bgsave_in_progress && cli debug reload nosave &&
    second=$(cli debug digest) &&
    cli config set appendonly yes && settled aof_rewrite_in_progress && cli bgrewriteaof &&
    settled aof_rewrite_in_progress && cli debug loadaof && third=$(cli debug digest) &&
    echo "$first $second $third" && test "$first" = "$second" && test "$second" = "$third" &&
    test ${#first} = 40; result=$?; cli shutdown nosave; wait; exit $result"#;

/// A machine with Debian's programs.
fn builder(artifacts: &Artifacts) -> Builder<'_> {
    support::builder(artifacts)
        .check()
        .memory(2 * GIB)
        .device_memory(128 * MIB)
        .userland()
}

/// `hmm chaos` of a command.
fn chaos(device: usize, options: &[&str], command: &[&str]) -> Command {
    let arguments = [&["--json", "chaos"], options, &["--"], command].concat();
    support::hmm(device, &arguments)
}

/// All that a program has said.
fn said(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    format!("{:?}\n{}{errors}", output.status, output.text())
}

/// The result line, which is the last one of the standard error.
fn tally(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|_| panic!("no result: {}", said(output)))
}

/// Runs a script of Debian's shell under chaos; it must succeed, and see no difference.
fn endure(vm: &Vm, name: &str, seed: &str, script: &str) -> Value {
    let command = ["/usr/bin/sh", "-c", script];
    let command = chaos(0, &["--seed", seed], &command).limit(LIMIT);
    let output = vm.run(command).unwrap();
    assert!(output.success(), "{name}: {}", said(&output));
    let tally = tally(&output);
    println!("{name}: {tally}");
    assert_eq!(tally["differences"], 0, "{name}: {tally:#}");
    assert_eq!(tally["unbound"], 0, "{name}: {tally:#}");
    for much in ["pages_to_device", "pages_to_system", "jobs", "comparisons"] {
        assert_ne!(tally[much], 0, "{name}: {much}: {tally:#}");
    }
    tally
}

#[test]
fn programs_of_debian_are_right_while_their_memory_moves_and_is_used_at_random() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let furnish = vm.run(["sh", "-c", "mkdir -p /tmp && chmod 1777 /tmp"]);
    assert!(furnish.unwrap().success());

    endure(&vm, "sqlite", "1", SQLITE);
    endure(&vm, "zstd", "2", ZSTD);
    endure(&vm, "python", "3", PYTHON);
    let stress = endure(&vm, "stress-ng", "4", STRESS);
    assert!(stress["processes"].as_u64() > Some(4), "{stress:#}");
    let redis = endure(&vm, "redis", "5", REDIS);
    assert!(redis["processes"].as_u64() > Some(4), "{redis:#}");

    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn the_exit_status_is_the_commands_unless_the_device_reads_something_else_than_the_cpu() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts).check().start().unwrap();
    let status = |command: Command| {
        let output = vm.run(command).unwrap();
        let text = said(&output);
        (output.status, text)
    };
    let (code, text) = status(chaos(0, &[], &["sh", "-c", "exit 7"]));
    assert_eq!(code, Status::Exited(7), "{text}");
    let (code, text) = status(chaos(0, &[], &["sh", "-c", "kill -TERM $$"]));
    assert_eq!(code, Status::Exited(143), "{text}");
    let (code, text) = status(chaos(0, &[], &["/no/such/program"]));
    assert_eq!(code, Status::Exited(127), "{text}");
    let (code, text) = status(chaos(9, &[], &["true"]));
    assert_eq!(code, Status::Exited(FAILED), "{text}");

    // A device whose answers are wrong by one bit.
    let rule = vm
        .device(0)
        .rule("wrong-result@submit.ended,operation=checksum")
        .unwrap();
    let output = vm
        .run(chaos(0, &["--pace", "1ms"], &["sleep", "3"]))
        .unwrap();
    assert_eq!(
        output.status,
        Status::Exited(DIFFERENT),
        "{}",
        said(&output)
    );
    let found = tally(&output);
    assert_ne!(found["differences"], 0, "{found:#}");
    assert_eq!(found["status"], 0, "the command has not noticed: {found:#}");
    assert_ne!(rule.happened().unwrap(), 0);
    rule.clear().unwrap();
    let output = vm
        .run(chaos(0, &["--pace", "1ms"], &["sleep", "3"]))
        .unwrap();
    assert!(output.success(), "{}", said(&output));
    assert_ne!(tally(&output)["comparisons"], 0, "{}", said(&output));

    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn another_process_is_bound_by_those_who_may_write_its_memory_until_it_ends_or_executes() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts).check().start().unwrap();
    run(&vm, 0, &["outside"]);
    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}
