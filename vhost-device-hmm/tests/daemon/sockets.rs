//! How front ends come to the daemon: by a path, by a descriptor that it is started with, by
//! systemd.

use std::fs::Permissions;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::unistd::getegid;

use super::*;

/// The program, started so that it inherits a descriptor.
fn with_descriptor(options: &[&str], descriptor: &OwnedFd) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
    let number = descriptor.as_raw_fd();
    command.args(["--fd", &number.to_string()]).args(options);
    keep(&mut command, number);
    command
}

/// Lets a program inherit a descriptor.
fn keep(command: &mut Command, number: i32) {
    let inherit = move || {
        // SAFETY: the new process has a copy of the descriptor, which the caller keeps open.
        let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: the call is one system call, which may be made between fork and exec.
    unsafe { command.pre_exec(inherit) };
    command.stderr(Stdio::piped());
}

/// A listening socket in a folder.
fn listening(folder: &tempfile::TempDir) -> (OwnedFd, std::path::PathBuf) {
    let path = folder.path().join("inherited");
    (UnixListener::bind(&path).unwrap().into(), path)
}

/// What a program that must fail has said.
fn complaint(mut command: Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    said
}

#[test]
fn a_socket_that_listens_is_served_by_its_descriptor_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, path) = listening(&folder);
    let child = with_descriptor(&[], &listener).spawn().unwrap();
    let mut daemon = Daemon::watch(child, &path, "listening on descriptor ");
    for _ in 0..2 {
        let mut guest = Guest::connect(&daemon, true);
        guest.init();
        guest.create_space(1);
    }
    assert!(daemon.terminate().0.success());
    assert!(path.exists(), "it belongs to the process that made it");
}

#[test]
fn a_connection_is_served_by_its_descriptor_to_its_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let child = with_descriptor(&[], &theirs).spawn().unwrap();
    drop(theirs);
    let mut daemon = Daemon::watch(child, "none".as_ref(), "serving descriptor ");
    let mut guest = Guest::prepare_on(Frontend::from_stream(ours, QUEUE_COUNT as u64), true);
    guest.start_rings();
    guest.init();
    guest.create_space(1);
    drop(guest);
    assert!(daemon.ends().success());

    // A signal ends it, too.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = with_descriptor(&[], &theirs.into()).spawn().unwrap();
    let mut daemon = Daemon::watch(child, "none".as_ref(), "serving descriptor ");
    assert!(daemon.terminate().0.success());
    drop(ours);
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    let said = complaint(with_descriptor(&[], &file));
    assert!(said.contains("cannot be used"), "{said}");
    let datagrams = OwnedFd::from(UnixDatagram::unbound().unwrap());
    let said = complaint(with_descriptor(&[], &datagrams));
    assert!(said.contains("is not a Unix stream socket"), "{said}");
    let mut closed = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
    closed.args(["--fd", "1000000"]);
    let said = complaint(closed);
    assert!(said.contains("is the program started with it?"), "{said}");
}

/// Starts the program as systemd does, with sockets of these names.
fn by_systemd(options: &[&str], sockets: &[(&str, &OwnedFd)]) -> Child {
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    // The shell becomes the program, and so has its process id. It can move descriptors.
    let mut script = String::new();
    let numbers: Vec<_> = sockets
        .iter()
        .map(|(_, socket)| socket.as_raw_fd())
        .collect();
    for (number, wanted) in numbers.iter().zip(3..) {
        script.push_str(&format!("exec {wanted}<&{number}; "));
    }
    script.push_str("LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"");
    let mut command = Command::new("bash");
    command
        .args([
            "-c",
            &script,
            "bash",
            env!("CARGO_BIN_EXE_vhost-device-hmm"),
        ])
        .args(options)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    for number in numbers {
        assert!(number >= 10, "it would be in the way of the others");
        keep(&mut command, number);
    }
    command.spawn().unwrap()
}

/// The same socket in a descriptor that is none of the first ones.
fn out_of_the_way(socket: OwnedFd) -> OwnedFd {
    let number = fcntl(&socket, FcntlArg::F_DUPFD_CLOEXEC(10)).unwrap();
    // SAFETY: the descriptor was just made, and has no other owner.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(number) }
}

#[test]
fn systemd_passes_the_socket_and_maybe_the_control_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, path) = listening(&folder);
    let listener = out_of_the_way(listener);
    let control = folder.path().join("control");
    let steering = out_of_the_way(UnixListener::bind(&control).unwrap().into());

    let child = by_systemd(&[], &[("hmm.socket", &listener)]);
    let mut daemon = Daemon::watch(child, &path, "listening on systemd's socket");
    Guest::connect(&daemon, true).init();
    assert!(daemon.terminate().0.success());

    let both = [("control", &steering), ("hmm.socket", &listener)];
    let child = by_systemd(&[], &both);
    let mut daemon = Daemon::watch(child, &path, "listening on systemd's socket");
    Guest::connect(&daemon, true).init();
    let mut greeting = [0; 1];
    let mut client = UnixStream::connect(&control).unwrap();
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"{");
    assert!(daemon.terminate().0.success());
    assert!(path.exists() && control.exists());

    for (options, sockets) in [
        (vec!["--control", "x"], &both[..]),
        (vec![], &both[..1]),
        (vec![], &[("a", &listener), ("b", &steering)]),
    ] {
        let output = by_systemd(&options, sockets).wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains("systemd has"),
            "{said}"
        );
    }
}

#[test]
fn sockets_that_are_meant_for_another_process_are_not_taken() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--socket-path PATH or --fd N"), "{said}");
}

#[test]
fn systemd_is_told_when_front_ends_can_connect_and_when_one_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("notify");
    let manager = UnixDatagram::bind(&name).unwrap();
    // Also for a daemon that is not root.
    std::fs::set_permissions(&name, Permissions::from_mode(0o777)).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let news = || {
        let mut news = [0; 256];
        let length = manager.recv(&mut news).unwrap();
        String::from_utf8(news[..length].to_vec()).unwrap()
    };
    let socket = folder.path().join("s");
    let child = command(&socket, &[])
        .env("NOTIFY_SOCKET", &name)
        .spawn()
        .unwrap();
    let waiting = "READY=1\nSTATUS=no front end\n";
    assert_eq!(news(), waiting);
    let mut daemon = Daemon::watch(child, &socket, "listening on ");
    let mut guest = Guest::connect(&daemon, true);
    assert_eq!(news(), "STATUS=serving a front end\n");
    guest.init();
    drop(guest);
    assert_eq!(news(), waiting);
    assert!(daemon.terminate().0.success());
    assert_eq!(news(), "STOPPING=1\n");
}

#[test]
fn the_socket_is_for_those_whom_the_command_line_names() {
    let group = getegid().as_raw();
    let private = ["--socket-mode", "600"];
    let with_group = ["--socket-group", &group.to_string()];
    let both = [&private[..], &with_group].concat();
    for (options, mode) in [
        (&private[..], 0o600),
        (&["--socket-mode", "666"], 0o666),
        (&with_group, 0o660),
        (&both, 0o600),
    ] {
        let daemon = Daemon::start(options);
        let metadata = std::fs::metadata(&daemon.socket).unwrap();
        assert_eq!(metadata.mode() & 0o777, mode, "{options:?}");
        assert_eq!(metadata.gid(), group);
    }
}

#[test]
fn the_control_socket_is_for_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let path = control.to_str().unwrap();
    let mut daemon = Daemon::start(&["--control", path, "--socket-mode", "666"]);
    assert_eq!(std::fs::metadata(&control).unwrap().mode() & 0o777, 0o600);
    assert!(daemon.terminate().0.success());
    assert!(!control.exists() && !daemon.socket.exists());
}

#[test]
fn a_dead_socket_goes_to_one_of_many_daemons() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    for _ in 0..5 {
        // Its listener is gone.
        drop(UnixListener::bind(&socket).unwrap());
        let mut daemons: Vec<_> = (0..6)
            .map(|_| command(&socket, &["--memory", "2M"]).spawn().unwrap())
            .collect();
        // Those that have not got it end.
        let mut losers = 0;
        while losers < 5 {
            daemons.retain_mut(|daemon| match daemon.try_wait().unwrap() {
                None => true,
                Some(status) => {
                    losers += 1;
                    assert_eq!(status.code(), Some(1));
                    let mut said = String::new();
                    daemon
                        .stderr
                        .take()
                        .unwrap()
                        .read_to_string(&mut said)
                        .unwrap();
                    assert!(said.contains("is in use"), "{said}");
                    false
                }
            });
            std::thread::yield_now();
        }
        let mut winner = Daemon::watch(daemons.remove(0), &socket, "listening on ");
        Guest::connect(&winner, true).init();
        assert!(winner.terminate().0.success());
        assert!(!socket.exists());
    }
}

#[test]
fn a_process_that_listens_and_accepts_nothing_keeps_its_socket_and_delays_no_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    // More than may wait: the next one to connect would block.
    let mut waiting = Vec::new();
    rustix::net::listen(&listener, 1).unwrap();
    loop {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let (family, kind) = (
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
        );
        let client = rustix::net::socket_with(family, kind, flags, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new(&socket).unwrap();
        if rustix::net::connect(&client, &address).is_err() {
            break;
        }
        waiting.push(client);
    }
    let said = complaint(command(&socket, &[]));
    assert!(said.contains("is in use"), "{said}");
    assert!(socket.exists());
}

#[test]
fn what_the_program_can_do_is_printed_whatever_else_is_asked_for() {
    for more in [
        &[][..],
        &["--fd", "17"],
        &["--no-such-option", "--memory", "1"],
        &["ctl"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"));
        let output = command
            .args(more)
            .arg("--print-capabilities")
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed["type"], "hmm");
        assert!(printed["features"].is_array());
    }
}
