//! What the daemon cannot do once it listens. The other tests show what it can do: their daemons are
//! in the sandbox, too.

use std::collections::BTreeMap;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::sync::mpsc;

use nix::libc;
use nix::sys::prctl;
use nix::unistd::geteuid;

use super::inject::{call, Argument, Outcome};
use super::*;

use Argument::{Bytes, Number};

/// The fields of a thread's status.
fn status(process: Pid, thread: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(":\t"));
    fields
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn threads(process: Pid) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads
        .map(|thread| thread.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The process that connects sockets for a daemon.
fn helper(daemon: &Daemon) -> Pid {
    let pid = daemon.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap())
}

#[test]
fn every_thread_is_inside() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let daemon = Daemon::start(&["--control", control.to_str().unwrap()]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    guest.create_space(1);
    let _client = std::os::unix::net::UnixStream::connect(&control).unwrap();
    let threads = threads(daemon.pid());
    assert!(threads.len() > 8, "{threads:?}");
    for thread in &threads {
        let status = status(daemon.pid(), thread);
        assert_eq!(status["Seccomp"], "2");
        assert_eq!(status["NoNewPrivs"], "1");
        for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[capabilities], "0000000000000000", "{capabilities}");
        }
        if geteuid().is_root() {
            assert_eq!(status["CapBnd"], "0000000000000000");
            assert_eq!(status["Uid"], "65534\t65534\t65534\t65534");
            assert_eq!(status["Gid"], "65534\t65534\t65534\t65534");
            assert_eq!(status["Groups"].trim(), "");
        }
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(limit("Max core file size"), "0");
    assert!(limit("Max open files").parse::<u32>().unwrap() <= 1024);
}

#[test]
fn a_daemon_that_is_to_end_with_its_parent_does_so_though_it_is_nobody_now() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut command = command(&socket, &[]);
    let bind_to_parent = || Ok(prctl::set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: the closure makes one system call, which may be made between fork and exec.
    unsafe { command.pre_exec(bind_to_parent) };
    // For the kernel, the thread that starts a process is its parent.
    let (child, children) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    let parent = std::thread::spawn(move || {
        child.send(command.spawn().unwrap()).unwrap();
        assert!(ends.recv().is_err(), "nothing is sent");
    });
    let mut daemon = Daemon::watch(children.recv().unwrap(), &socket, "listening on ");
    drop(end);
    parent.join().unwrap();
    assert_eq!(daemon.ends().signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn the_sandbox_is_complete_or_says_what_it_lacks() {
    let daemon = Daemon::start(&[]);
    Guest::connect(&daemon, true).init();
    let lines = daemon.lines();
    let gaps: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("sandbox"))
        .collect();
    let lacks = |what: &str| gaps.iter().any(|line| line.contains(what));
    let namespace = |process: Pid, kind: &str| {
        std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap()
    };
    for kind in ["net", "ipc", "uts", "mnt"] {
        let own = namespace(daemon.pid(), kind) != namespace(Pid::this(), kind);
        assert!(own || lacks("it shares namespaces"), "{kind}: {gaps:?}");
    }
    // On such a host none of the above is tested.
    if geteuid().is_root() {
        assert!(
            !lacks("it stays root") && !lacks("it has capabilities"),
            "{gaps:?}"
        );
    }
}

#[test]
fn the_helper_has_no_more_than_it_needs() {
    let mut daemon = Daemon::start(&[]);
    Guest::connect(&daemon, true).init();
    let helper = helper(&daemon);
    let status = status(helper, &helper.to_string());
    assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("2", "1"));
    let file_access = if geteuid().is_root() { 1 << 1 } else { 0 };
    let capabilities = u64::from_str_radix(&status["CapEff"], 16).unwrap();
    assert_eq!(capabilities, file_access);
    // Of the daemon it has only the channel.
    let descriptors = std::fs::read_dir(format!("/proc/{helper}/fd")).unwrap();
    assert_eq!(descriptors.count(), 3);
    assert!(daemon.terminate().0.success());
    let gone = || !std::path::Path::new(&format!("/proc/{helper}")).exists();
    let deadline = Instant::now() + DEADLINE;
    while !gone() {
        assert!(Instant::now() < deadline, "it stays behind");
        std::thread::yield_now();
    }
}

#[test]
fn a_daemon_that_is_killed_takes_the_helper_along_and_leaves_the_socket() {
    let mut daemon = Daemon::start(&[]);
    let helper = helper(&daemon);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let status = || std::fs::read_to_string(format!("/proc/{helper}/status"));
    let deadline = Instant::now() + DEADLINE;
    while status().is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(Instant::now() < deadline, "it stays behind");
        std::thread::yield_now();
    }
    assert!(daemon.socket.exists());
    let again = Daemon::start_at(&daemon.socket, &[]);
    Guest::connect(&again, true).init();
}

#[test]
fn a_file_cannot_be_opened() {
    let mut daemon = Daemon::start(&[]);
    let path = Bytes(b"/etc/passwd\0");
    let here = Number(i64::from(libc::AT_FDCWD).cast_unsigned());
    for (number, arguments) in [
        (libc::SYS_open, &[path, Number(0)][..]),
        (libc::SYS_openat, &[here, path, Number(0)]),
    ] {
        let outcome = call(daemon.pid(), number, arguments);
        assert_eq!(outcome, Outcome::Returned(-i64::from(libc::EACCES)));
    }
    // It goes on, since libraries try this.
    Guest::connect(&daemon, true).init();
    assert!(daemon.terminate().0.success());
}

#[test]
fn a_call_that_is_allowed_returns() {
    let daemon = Daemon::start(&[]);
    let pid = i64::from(daemon.pid().as_raw());
    assert_eq!(
        call(daemon.pid(), libc::SYS_getpid, &[]),
        Outcome::Returned(pid)
    );
    Guest::connect(&daemon, true).init();
}

#[test]
fn a_forbidden_call_kills_the_daemon_and_is_named() {
    let number = |value: i32| Number(u64::from(value.unsigned_abs()));
    let (inet, unix) = (number(libc::AF_INET), number(libc::AF_UNIX));
    let stream = number(libc::SOCK_STREAM);
    let shell = Bytes(b"/bin/sh\0");
    let code = number(libc::PROT_EXEC | libc::PROT_READ);
    let private = number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let one = Number(1);
    let forbidden: [(&str, i64, &[Argument]); 17] = [
        ("socket", libc::SYS_socket, &[inet, stream]),
        ("socket", libc::SYS_socket, &[unix, stream]),
        ("connect", libc::SYS_connect, &[]),
        ("execve", libc::SYS_execve, &[shell]),
        ("execveat", libc::SYS_execveat, &[]),
        ("fork", libc::SYS_fork, &[]),
        ("clone", libc::SYS_clone, &[number(libc::SIGCHLD)]),
        ("ptrace", libc::SYS_ptrace, &[]),
        ("process_vm_readv", libc::SYS_process_vm_readv, &[]),
        ("kill", libc::SYS_kill, &[one, number(libc::SIGKILL)]),
        ("tgkill", libc::SYS_tgkill, &[one, one, one]),
        ("unlink", libc::SYS_unlink, &[shell]),
        (
            "mmap",
            libc::SYS_mmap,
            &[Number(0), Number(4096), code, private],
        ),
        (
            "mprotect",
            libc::SYS_mprotect,
            &[Number(0), Number(4096), code],
        ),
        (
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[number(libc::SIGSYS)],
        ),
        ("io_uring_setup", libc::SYS_io_uring_setup, &[one]),
        ("setuid", libc::SYS_setuid, &[]),
    ];
    for (name, call_number, arguments) in forbidden {
        let mut daemon = Daemon::start(&["--memory", "2M"]);
        let outcome = call(daemon.pid(), call_number, arguments);
        assert_eq!(outcome, Outcome::Signal(Signal::SIGSYS), "{name}");
        assert_eq!(daemon.ends().signal(), Some(libc::SIGSYS), "{name}");
        daemon.says(&format!(
            "the system call {name} ({call_number}) is forbidden"
        ));
    }
}

#[test]
fn a_forbidden_call_of_any_thread_kills_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut daemon = Daemon::start(&["--log-file", log.to_str().unwrap()]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    let threads = threads(daemon.pid());
    let is_engine = |thread: &&String| status(daemon.pid(), thread)["Name"] == "engine-0";
    let engine = threads.iter().find(is_engine).unwrap();
    let engine = Pid::from_raw(engine.parse().unwrap());
    let outcome = call(engine, libc::SYS_execve, &[Bytes(b"/bin/sh\0")]);
    assert_eq!(outcome, Outcome::Signal(Signal::SIGSYS));
    assert_eq!(daemon.ends().signal(), Some(libc::SIGSYS));
    daemon.says("the system call execve");
    assert!(std::fs::read_to_string(log).unwrap().contains("execve"));
}

#[test]
fn a_call_that_is_only_to_be_logged_is_made() {
    let mut daemon = Daemon::start(&["--sandbox", "log"]);
    let socket = [
        Number(u64::from(libc::AF_INET.unsigned_abs())),
        Number(u64::from(libc::SOCK_STREAM.unsigned_abs())),
    ];
    match call(daemon.pid(), libc::SYS_socket, &socket) {
        Outcome::Returned(descriptor) => assert!(descriptor > 2, "{descriptor}"),
        other => panic!("{other:?}"),
    }
    // All else is as usual: there is no file there.
    let none = [Bytes(b"/etc/passwd\0"), Number(0)];
    let access = call(daemon.pid(), libc::SYS_access, &none);
    if geteuid().is_root() {
        assert_eq!(access, Outcome::Returned(-i64::from(libc::ENOENT)));
    }
    Guest::connect(&daemon, true).init();
    assert!(daemon.terminate().0.success());
    assert!(!daemon.socket.exists());
}

#[test]
fn without_a_sandbox_the_daemon_keeps_what_it_has() {
    let mut daemon = Daemon::start(&["--sandbox", "off"]);
    let status = status(daemon.pid(), &daemon.pid().to_string());
    assert_eq!(status["Seccomp"], "0");
    let user = geteuid();
    assert_eq!(status["Uid"], format!("{user}\t{user}\t{user}\t{user}"));
    Guest::connect(&daemon, true).init();
    assert!(daemon.terminate().0.success());
    assert!(!daemon.socket.exists());
}

#[test]
fn a_stop_and_a_continuation_change_nothing() {
    let mut daemon = Daemon::start(&[]);
    let mut guest = Guest::connect(&daemon, true);
    guest.init();
    for _ in 0..20 {
        kill(daemon.pid(), Signal::SIGSTOP).unwrap();
        kill(daemon.pid(), Signal::SIGCONT).unwrap();
        guest.statistics();
    }
    assert!(daemon.terminate().0.success());
}
