//! A daemon with deliberate delays, and its control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{json, Value};
use vm_memory::GuestMemoryMmap;

use super::guest::{Daemon, Guest, DEADLINE, FREE_FRAME};
use super::unkind::{listed, mapped, more_memory};
use super::*;

/// A daemon with a control socket.
struct Steered {
    daemon: Daemon,
    socket: PathBuf,
}

impl Steered {
    fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let control = ["--control", socket.to_str().unwrap()];
        let daemon = Daemon::start_in(folder, &[&control, options].concat());
        Self { daemon, socket }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    fn ask(&self, request: Value) -> Value {
        self.client().ask(request)
    }

    /// Runs `vhost-device-hmm ctl`.
    fn ctl(&self, words: &[&str]) -> Output {
        ctl(&self.socket, words)
    }
}

fn ctl(socket: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"))
        .arg("ctl")
        .arg(socket)
        .args(words)
        .output()
        .unwrap()
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> Self {
        let connection = UnixStream::connect(socket).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Self(BufReader::new(connection));
        let greeting = client.read();
        assert_eq!(greeting["hello"], "vhost-device-hmm", "{greeting}");
        assert_eq!(greeting["version"], 1);
        client
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn send(&mut self, line: &[u8]) {
        self.0.get_mut().write_all(line).unwrap();
    }

    /// Sends a request that succeeds, and returns the result.
    fn ask(&mut self, request: Value) -> Value {
        self.send(format!("{request}\n").as_bytes());
        let mut answer = self.read();
        assert!(answer.get("error").is_none(), "{request}: {answer}");
        answer["result"].take()
    }

    /// Sends a request that is refused, and returns the code.
    fn refused(&mut self, request: Value) -> String {
        self.send(format!("{request}\n").as_bytes());
        let answer = self.read();
        answer["error"]["code"].as_str().unwrap().to_owned()
    }
}

fn rule(text: &str) -> Value {
    json!({ "command": "set-rule", "rule": text })
}

fn wait_held(point: &str) -> Value {
    json!({ "command": "wait-held", "point": point, "timeout": "60s" })
}

fn unmap_request(space: u32, address: u64) -> Vec<u8> {
    let entry = RangeEntry {
        address: U64::new(address),
        pages: U64::new(1),
    };
    request(Request::Unmap, space, 1, entry.as_bytes())
}

fn query(guest: &mut Guest, space: u32, address: u64) -> u32 {
    let entry = RangeEntry {
        address: U64::new(address),
        pages: U64::new(1),
    };
    let (status, results) = guest.control(Request::Query, space, 1, entry.as_bytes());
    assert_eq!(status, OK);
    u32::from_le_bytes(results[8..12].try_into().unwrap())
}

#[test]
fn the_control_socket_belongs_to_its_owner_and_goes_with_the_daemon() {
    let steered = Steered::start(&[]);
    let mode = std::fs::metadata(&steered.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let pid = Pid::from_raw(steered.daemon.child.id().try_into().unwrap());
    let _client = steered.client();
    kill(pid, Signal::SIGTERM).unwrap();
    let mut steered = steered;
    assert!(steered.daemon.child.wait().unwrap().success());
    assert!(!steered.socket.exists());
}

#[test]
fn a_request_that_is_held_is_not_carried_out_and_keeps_only_its_queue() {
    let steered = Steered::start(&["--check"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    guest.map(3, 0x1000, FREE_FRAME);

    let mut client = steered.client();
    let held = client.ask(rule("hold@control.taken,operation=unmap,limit=60s"));
    let head = guest.offer(Queue::Control, &unmap_request(3, 0x1000), 64);
    guest.kick(Queue::Control);
    let what = client.ask(wait_held("control.taken"));
    assert_eq!(
        (&what["operation"], &what["space"]),
        (&json!("unmap"), &json!(3))
    );
    assert!(guest.is_quiet(Queue::Control), "it is not answered");

    // The promise is not given yet: a job still uses the page, and copies continue.
    guest.submit_fill(9, 3, 0x1000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    let clear = DmaItem {
        kind: U32::new(Kind::Clear.raw()),
        pages: U32::new(1),
        source: U64::ZERO,
        destination: U64::new(1),
    };
    let copies = request(Request::Copy, 0, 1, clear.as_bytes());
    assert_eq!(guest.ask(Queue::Dma, &copies, 64)[0], 0);
    assert!(guest.is_quiet(Queue::Control));

    let mappings = client.ask(json!({ "command": "mappings", "space": 3 }));
    let [mapping] = &mappings.as_array().unwrap()[..] else {
        panic!("{mappings}");
    };
    assert_eq!(mapping["address"], "0x1000");
    assert_eq!(
        (&mapping["rights"], &mapping["dirty"]),
        (&json!("rwa"), &json!(true))
    );

    let cleared = json!({ "command": "clear-rule", "rule": held["rule"] });
    client.ask(cleared.clone());
    assert_eq!(guest.returned(Queue::Control).0, head);
    assert_eq!(query(&mut guest, 3, 0x1000), 0, "it is carried out");
    assert_eq!(client.refused(cleared), "no-rule");
    assert_eq!(guest.statistics().stale_accesses.get(), 0);
}

// {dev-late-chain}
#[test]
fn each_point_of_a_control_request_is_where_it_says() {
    let steered = Steered::start(&[]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    let mut client = steered.client();
    for (point, carried_out) in [
        ("control.seen", false),
        ("control.taken", false),
        ("control.executed", true),
        ("control.answered", true),
        ("control.published", true),
    ] {
        let pages = |client: &mut Client| {
            let dump = client.ask(json!({ "command": "dump" }));
            dump["spaces"][0]["mapped_pages"].as_u64().unwrap()
        };
        guest.map(3, 0x1000, FREE_FRAME);
        assert_eq!(pages(&mut client), 1);
        client.ask(json!({ "command": "hold", "point": point, "limit": "60s" }));
        let head = guest.offer(Queue::Control, &unmap_request(3, 0x1000), 64);
        guest.kick(Queue::Control);
        client.ask(wait_held(point));
        assert_eq!(pages(&mut client) == 0, carried_out, "{point}");
        // The reply is in the used ring only at the last point, before the interrupt.
        assert_eq!(guest.is_quiet(Queue::Control), point != "control.published");
        client.ask(json!({ "command": "release", "point": point }));
        assert_eq!(guest.returned(Queue::Control).0, head);
    }
}

// {dev-late-init}
#[test]
fn an_init_that_is_held_has_ended_the_jobs_and_nothing_else() {
    let steered = Steered::start(&[]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    guest.submit_fill(1, 3, 0x9000, 8);
    while guest.statistics().parked_jobs.get() == 0 {
        std::thread::yield_now();
    }
    let mut client = steered.client();
    client.ask(json!({ "command": "hold", "point": "control.init", "limit": "60s" }));
    let entry = InitEntry {
        version: U32::new(VERSION),
        reserved: U32::ZERO,
    };
    let init = request(Request::Init, 0, 1, entry.as_bytes());
    let head = guest.offer(Queue::Control, &init, 64);
    guest.kick(Queue::Control);
    client.ask(wait_held("control.init"));
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
    let dump = client.ask(json!({ "command": "dump" }));
    let held = ["jobs", "spaces"].map(|what| dump[what].as_array().unwrap().len());
    assert_eq!(held, [0, 1], "{dump}");
    assert!(guest.is_quiet(Queue::Control));
    client.ask(json!({ "command": "release" }));
    assert_eq!(guest.returned(Queue::Control).0, head);
    assert_eq!(guest.statistics().spaces.get(), 0);
}

// {dev-init-faults}
#[test]
fn an_init_waits_for_a_fault_that_is_on_its_way_to_the_driver() {
    let steered = Steered::start(&[]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    let mut client = steered.client();
    client.ask(json!({ "command": "hold", "point": "fault.reported", "limit": "60s" }));
    guest.offer_fault_buffer(4096);
    guest.submit_fill(1, 3, 0x9000, 8);
    client.ask(wait_held("fault.reported"));
    let entry = InitEntry {
        version: U32::new(VERSION),
        reserved: U32::ZERO,
    };
    let init = request(Request::Init, 0, 1, entry.as_bytes());
    let head = guest.offer(Queue::Control, &init, 64);
    guest.kick(Queue::Control);
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
    while client.ask(json!({ "command": "dump" }))["ready"] != true {
        std::thread::yield_now();
    }
    // All state is dropped, except for replies that are already written.
    assert!(guest.is_quiet(Queue::Control));
    client.ask(json!({ "command": "release" }));
    assert_eq!(guest.returned(Queue::Control).0, head);
    assert!(!guest.is_quiet(Queue::Fault), "it has come before");
}

// {dev-late-fetch}
#[test]
fn a_fetch_that_is_held_has_kept_its_promise_and_copied_nothing() {
    for (queue, point) in [(Queue::Control, "control.fetch"), (Queue::Dma, "dma.fetch")] {
        let steered = Steered::start(&["--check"]);
        let mut guest = Guest::connect(&steered.daemon, true);
        guest.init();
        guest.create_space(3);
        let clear = DmaItem {
            kind: U32::new(Kind::Clear.raw()),
            pages: U32::new(1),
            source: U64::ZERO,
            destination: U64::new(7),
        };
        let clear = request(Request::Copy, 0, 1, clear.as_bytes());
        assert_eq!(guest.ask(Queue::Dma, &clear, 64)[0], 0);
        let entry = MapEntry {
            address: U64::new(0x1000),
            frame: U64::new(7),
            pages: U32::new(1),
            order: U16::ZERO,
            flags: U16::new(0x107),
        };
        let mapped = guest.control(Request::Map, 3, 1, entry.as_bytes());
        assert_eq!(mapped.0, OK);
        let place = GuestAddress(FREE_FRAME * PAGE_BYTES);
        guest.memory.write_obj(5_u64, place).unwrap();
        let mut client = steered.client();
        client.ask(json!({ "command": "hold", "point": point, "limit": "60s" }));
        let entry = FetchEntry {
            address: U64::new(0x1000),
            source: U64::new(7),
            destination: U64::new(FREE_FRAME),
            pages: U32::new(1),
            reserved: U32::ZERO,
        };
        let fetch = request(Request::Fetch, 3, 1, entry.as_bytes());
        let head = guest.offer(queue, &fetch, 64);
        guest.kick(queue);
        client.ask(wait_held(point));
        let dump = client.ask(json!({ "command": "dump" }));
        assert_eq!(dump["spaces"][0]["mapped_pages"], 0, "{point}: {dump}");
        let word = |guest: &Guest| guest.memory.read_obj::<u64>(place).unwrap();
        assert_eq!(word(&guest), 5, "{point}");
        client.ask(json!({ "command": "release" }));
        assert_eq!(guest.returned(queue).0, head);
        assert_eq!(word(&guest), 0, "{point}");
    }
}

// {dev-late-item}
#[test]
fn a_stop_a_front_end_that_goes_and_a_signal_end_what_is_held() {
    for point in ["control.taken", "dma.taken", "dma.item", "dma.answered"] {
        let steered = Steered::start(&["--rule", &format!("hold@{point},nth=2,limit=600s")]);
        let mut guest = Guest::connect(&steered.daemon, true);
        guest.init();
        let clear = |frame| DmaItem {
            kind: U32::new(Kind::Clear.raw()),
            pages: U32::new(1),
            source: U64::ZERO,
            destination: U64::new(frame),
        };
        let begun = Instant::now();
        let hold_one = |guest: &mut Guest| {
            if point.starts_with("dma") {
                let first = request(Request::Copy, 0, 1, clear(1).as_bytes());
                assert_eq!(guest.ask(Queue::Dma, &first, 64)[0], 0);
                guest.offer(Queue::Dma, &first, 64);
                guest.kick(Queue::Dma);
            } else {
                guest.offer(
                    Queue::Control,
                    &request(Request::Statistics, 0, 0, &[]),
                    512,
                );
                guest.kick(Queue::Control);
            }
            steered.ask(wait_held(point));
        };
        hold_one(&mut guest);
        // Chains that were taken are answered before the queue stops.
        let [control, dma, ..] = guest.stop_rings();
        let (at, queue) = match point.starts_with("dma") {
            true => (dma, Queue::Dma),
            false => (control, Queue::Control),
        };
        assert!(at >= 2, "{point}: {at}");
        guest.returned(queue);
        // The front end disconnects: the next one finds a device, and rules that count from zero.
        drop(guest);
        let mut guest = Guest::connect(&steered.daemon, true);
        guest.init();
        hold_one(&mut guest);
        drop(guest);
        let mut guest = Guest::connect(&steered.daemon, true);
        guest.init();
        hold_one(&mut guest);
        let pid = Pid::from_raw(steered.daemon.child.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let Steered { mut daemon, .. } = steered;
        assert!(daemon.child.wait().unwrap().success(), "{point}");
        assert!(begun.elapsed() < DEADLINE, "the limit has not ended them");
    }
}

// {dev-late-step}
#[test]
fn a_job_that_is_held_between_two_steps_ends_when_it_is_cancelled() {
    let steered = Steered::start(&["--engines", "1"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    for page in 0..64 {
        guest.map(3, 0x10_0000 + page * PAGE_BYTES, FREE_FRAME);
    }
    steered.ask(rule("hold@engine.step,limit=600s"));
    let endless = |guest: &mut Guest, job| {
        guest.submit_fill(job, 3, 0x10_0000, 64 * PAGE_BYTES);
        steered.ask(wait_held("engine.step"));
    };
    endless(&mut guest, 1);
    let cancel = U64::new(1);
    let (status, _) = guest.control(Request::Cancel, 0, 1, cancel.as_bytes());
    assert_eq!(status, OK);
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
    endless(&mut guest, 2);
    assert_eq!(guest.control(Request::SpaceDestroy, 3, 0, &[]).0, OK);
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
}

// {dev-late-fault}
#[test]
fn faults_and_ends_that_are_held_keep_neither_engines_nor_the_control_queue() {
    let steered = Steered::start(&["--engines", "1"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    guest.map(3, 0x1000, FREE_FRAME);
    guest.offer_fault_buffer(4096);
    let mut client = steered.client();
    for point in ["fault.raised", "submit.ended"] {
        client.ask(json!({ "command": "hold", "point": point, "limit": "60s" }));
    }
    // One job waits for a page, and the driver is not told; others run and end.
    guest.submit_fill(1, 3, 0x9000, 8);
    client.ask(wait_held("fault.raised"));
    assert!(guest.is_quiet(Queue::Fault));
    guest.submit_fill(2, 3, 0x1000, 8);
    client.ask(wait_held("submit.ended"));
    guest.submit_fill(3, 3, 0x1000, 8);
    let ended = |client: &mut Client| {
        let statistics = client.ask(json!({ "command": "statistics" }));
        statistics["jobs_ended"].as_u64().unwrap()
    };
    while ended(&mut client) < 2 {
        std::thread::yield_now();
    }
    assert_eq!(guest.statistics().parked_jobs.get(), 1);
    assert!(guest.is_quiet(Queue::Submit), "no chain has come back");
    // Ended jobs are returned after the release, and the fault is reported.
    client.ask(json!({ "command": "release" }));
    for _ in 0..2 {
        assert_eq!(guest.job_reply().status.get(), OK);
    }
    let [fault] = guest.faults().try_into().unwrap();
    guest.map(3, 0x9000, FREE_FRAME);
    guest.answer(&fault, Action::Retry, 0);
    assert_eq!(guest.job_reply().status.get(), OK);
}

#[test]
fn engines_that_are_paused_take_up_no_job() {
    let steered = Steered::start(&[]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    guest.map(3, 0x1000, FREE_FRAME);
    steered.ask(json!({ "command": "pause" }));
    guest.submit_fill(1, 3, 0x1000, 8);
    let dump = || steered.ask(json!({ "command": "dump" }));
    while dump()["jobs"].as_array().unwrap().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(dump()["jobs"][0]["place"], "runnable");
    assert_eq!(dump()["engines_paused"], true);
    steered.ask(json!({ "command": "resume" }));
    assert_eq!(guest.job_reply().status.get(), OK);
}

#[test]
fn a_client_that_reads_nothing_holds_up_no_other() {
    let steered = Steered::start(&[]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    let mut silent = UnixStream::connect(&steered.socket).unwrap();
    silent
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // Until neither side can write any more.
    while silent.write_all(b"{\"command\":\"points\"}\n").is_ok() {}
    for _ in 0..100 {
        guest.statistics();
    }
    assert_eq!(steered.ask(json!({ "command": "rules" })), json!([]));
}

#[test]
fn more_clients_than_there_are_places_are_told_so() {
    let steered = Steered::start(&[]);
    let mut clients: Vec<Client> = (0..16).map(|_| steered.client()).collect();
    let mut more = BufReader::new(UnixStream::connect(&steered.socket).unwrap());
    let mut line = String::new();
    more.read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(answer["error"]["code"], "too-many-clients");
    assert_eq!(more.read(&mut [0]).unwrap(), 0, "and sent away");
    assert_eq!(clients[15].ask(json!({ "command": "rules" })), json!([]));
    drop(clients);
    assert_a_place_becomes_free(&steered);
}

fn assert_a_place_becomes_free(steered: &Steered) {
    // Their places are free once their threads have noticed.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut again = BufReader::new(UnixStream::connect(&steered.socket).unwrap());
        let mut line = String::new();
        again.read_line(&mut line).unwrap();
        if line.contains("hello") {
            break;
        }
        assert!(Instant::now() < deadline, "{line}");
    }
}

#[test]
fn clients_that_have_gone_wait_for_nothing_any_more() {
    let steered = Steered::start(&[]);
    let mut clients: Vec<Client> = (0..16).map(|_| steered.client()).collect();
    let wait = json!({ "command": "wait-held", "point": "control.taken", "timeout": "600s" });
    for client in &mut clients {
        client.send(format!("{wait}\n").as_bytes());
    }
    drop(clients);
    assert_a_place_becomes_free(&steered);
}

#[test]
fn whatever_a_client_sends_it_gets_answers() {
    let steered = Steered::start(&[]);
    let lines = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[{}\\[\\]\":,a-z0-9@.= -]{0,120}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            "{\"command\":\"points\"}",
            "{\"command\":\"set-rule\"}",
            "{\"command\":\"set-rule\",\"rule\":\"hold\",\"more\":1}",
            "{\"command\":\"clear-rule\",\"rule\":-1}",
            "{\"command\":\"step\",\"point\":\"dma.taken\",\"count\":1e99}",
            "{\"command\":[\"points\"]}",
            "{\"id\":{\"a\":[1,2]},\"command\":\"nonsense\"}",
            "{\"command\":\"hold\",\"point\":\"nowhere\",\"limit\":\"-1s\"}",
        ])
        .prop_map(|line| line.as_bytes().to_vec()),
    ];
    let mut runner = TestRunner::new(Cases::with_cases(300));
    let result = runner.run(&prop::collection::vec(lines, 1..8), |lines| {
        let mut client = steered.client();
        for line in lines {
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != b'\n').collect();
            client.send(&line);
            client.send(b"\n");
            let answer = client.read();
            prop_assert!(answer.get("result").is_some() != answer.get("error").is_some());
        }
        Ok(())
    });
    result.unwrap();
    // A line without an end is cut off, with an error.
    let mut client = steered.client();
    client.send(&[b' '; 16 << 10]);
    assert_eq!(client.read()["error"]["code"], "malformed");
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    let mark = json!({ "id": [7, "a"], "command": "rules" });
    let mut client = steered.client();
    client.send(format!("{mark}\n").as_bytes());
    assert_eq!(client.read(), json!({ "id": [7, "a"], "result": [] }));
}

#[test]
fn the_program_speaks_to_a_daemon_and_says_what_to_do_next() {
    let steered = Steered::start(&[]);
    let text = |output: &Output| String::from_utf8(output.stdout.clone()).unwrap();
    let mistake = |words: &[&str]| {
        let output = steered.ctl(words);
        assert!(!output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let points = text(&steered.ctl(&["points"]));
    assert!(points.contains("control.taken") && points.contains("engine.step"));
    let set = steered.ctl(&["set", "delay=1ms..2ms@dma.item,every=3"]);
    assert_eq!(text(&set).trim(), "1");
    let hold = steered.ctl(&["hold", "control.executed", "--limit", "60s"]);
    assert_eq!(text(&hold).trim(), "2");
    let rules = text(&steered.ctl(&["rules"]));
    assert!(rules.contains("delay=1ms..2ms@dma.item,every=3"), "{rules}");
    assert!(rules.contains("hold@control.executed,limit=60s"), "{rules}");
    assert!(steered.ctl(&["clear", "1"]).status.success());
    assert!(mistake(&["clear", "1"]).contains("`rules` lists those in force"));
    assert!(mistake(&["set", "hold@nowhere"]).contains("ctl PATH points` list them"));
    assert!(text(&steered.ctl(&["statistics"])).contains("control_requests"));
    assert!(mistake(&["wait-held", "dma.taken", "--timeout", "1ms"]).contains("nothing was held"));
    let json: Value = serde_json::from_slice(&steered.ctl(&["--json", "rules"]).stdout).unwrap();
    assert_eq!(json[0]["rule"], 2);
    let raw = steered.ctl(&["raw", "{\"command\":\"log-level\",\"level\":\"debug\"}"]);
    assert!(text(&raw).contains("debug"));
    assert!(text(&steered.ctl(&["log-level"])).contains("debug"));

    let mut guest = Guest::connect(&steered.daemon, true);
    guest.offer(
        Queue::Control,
        &request(Request::Statistics, 0, 0, &[]),
        512,
    );
    guest.kick(Queue::Control);
    let held = text(&steered.ctl(&["wait-held", "control.executed"]));
    assert!(held.contains("statistics"), "{held}");
    assert!(text(&steered.ctl(&["dump"])).contains("control"));
    assert!(steered.ctl(&["step", "control.executed"]).status.success());
    guest.returned(Queue::Control);
    let nobody = ctl(Path::new("/nonexistent"), &["points"]);
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        said.contains("is a daemon running with --control /nonexistent?"),
        "{said}"
    );
    let vhost_user = ctl(&steered.daemon.socket, &["points"]);
    assert!(!vhost_user.status.success());
}

// {dev-late-retry}
#[test]
fn a_job_whose_fault_was_answered_may_be_late_and_keeps_no_other_waiting() {
    let steered = Steered::start(&["--engines", "1"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    guest.map(3, 0x1000, FREE_FRAME);
    for _ in 0..3 {
        guest.offer_fault_buffer(4096);
    }
    let mut client = steered.client();
    client.ask(rule("hold@fault.retried,limit=600s"));
    for job in [1, 2] {
        guest.submit_fill(job, 3, 0x9000 + job * PAGE_BYTES, 8);
        let [fault] = guest.faults().try_into().unwrap();
        guest.map(3, 0x9000 + job * PAGE_BYTES, FREE_FRAME);
        guest.answer(&fault, Action::Retry, 0);
        client.ask(wait_held("fault.retried"));
    }
    let dump = client.ask(json!({ "command": "dump" }));
    assert_eq!(dump["jobs"][0]["place"], "retried", "{dump}");
    assert_eq!(dump["faults"], json!([]));
    // Neither the only engine nor the control queue waits, and a cancelled job ends.
    guest.submit_fill(3, 3, 0x1000, 8);
    assert_eq!(guest.job_reply().status.get(), OK);
    let cancel = U64::new(1);
    assert_eq!(
        guest.control(Request::Cancel, 0, 1, cancel.as_bytes()).0,
        OK
    );
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
    while client
        .ask(json!({ "command": "held" }))
        .as_array()
        .unwrap()
        .len()
        > 1
    {
        std::thread::yield_now();
    }
    client.ask(json!({ "command": "step", "point": "fault.retried" }));
    assert_eq!(guest.job_reply().status.get(), OK);
    // Destroying the space ends the last one.
    guest.submit_fill(4, 3, 0xf000, 8);
    let [fault] = guest.faults().try_into().unwrap();
    guest.answer(&fault, Action::Retry, 0);
    client.ask(wait_held("fault.retried"));
    assert_eq!(guest.control(Request::SpaceDestroy, 3, 0, &[]).0, OK);
    assert_eq!(guest.job_reply().status.get(), Status::Cancelled.raw());
}

// {dev-order-returned}, {dev-order-copies}
#[test]
fn what_has_no_order_changes_places_and_the_rest_does_not() {
    let steered = Steered::start(&["--rule", "swap"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    let mut client = steered.client();
    // Requests of the control queue are swapped when they are returned, and not before. Both are in
    // the ring when the device looks, because it is busy until then.
    client.ask(json!({ "command": "hold", "point": "control.published", "limit": "60s" }));
    let busy = guest.offer(
        Queue::Control,
        &request(Request::Statistics, 0, 0, &[]),
        512,
    );
    guest.kick(Queue::Control);
    client.ask(wait_held("control.published"));
    let entry = MapEntry {
        address: U64::new(0x1000),
        frame: U64::new(FREE_FRAME),
        pages: U32::new(1),
        order: U16::ZERO,
        flags: U16::new(7),
    };
    let map = request(Request::Map, 3, 1, entry.as_bytes());
    let first = guest.offer(Queue::Control, &map, 64);
    let second = guest.offer(Queue::Control, &unmap_request(3, 0x1000), 64);
    guest.kick(Queue::Control);
    client.ask(json!({ "command": "release" }));
    assert_eq!(guest.returned(Queue::Control).0, busy);
    assert_eq!(guest.returned(Queue::Control).0, second);
    assert_eq!(guest.returned(Queue::Control).0, first);
    let page = query(&mut guest, 3, 0x1000);
    // {dev-control-order}
    assert_eq!(page, 0, "the later one was carried out later");
    // Copies are carried out in the other order; the items of each stay in order.
    client.ask(json!({ "command": "hold", "point": "dma.published", "limit": "60s" }));
    let frame = |number| FREE_FRAME + number;
    let place = |number| GuestAddress(frame(number) * PAGE_BYTES);
    for (number, word) in [(0, 0xa_u64), (1, 0xb), (2, 0xc), (3, 0xd)] {
        guest.memory.write_obj(word, place(number)).unwrap();
    }
    let copies = |sources: [u64; 2]| {
        let items = sources.map(|source| DmaItem {
            kind: U32::new(Kind::ToDevice.raw()),
            pages: U32::new(1),
            source: U64::new(source),
            destination: U64::new(7),
        });
        request(Request::Copy, 0, 2, items.as_bytes())
    };
    guest.offer(Queue::Dma, &copies([frame(0), frame(0)]), 64);
    guest.kick(Queue::Dma);
    client.ask(wait_held("dma.published"));
    guest.offer(Queue::Dma, &copies([frame(0), frame(1)]), 64);
    guest.offer(Queue::Dma, &copies([frame(2), frame(3)]), 64);
    guest.kick(Queue::Dma);
    client.ask(json!({ "command": "release" }));
    for _ in 0..3 {
        guest.returned(Queue::Dma);
    }
    let back = DmaItem {
        kind: U32::new(Kind::ToSystem.raw()),
        pages: U32::new(1),
        source: U64::new(7),
        destination: U64::new(frame(4)),
    };
    guest.ask(
        Queue::Dma,
        &request(Request::Copy, 0, 1, back.as_bytes()),
        64,
    );
    let word: u64 = guest.memory.read_obj(place(4)).unwrap();
    // {dev-items-in-order}
    assert_eq!(word, 0xb, "the last item of the first request came last");
}

// {dev-order-jobs}
#[test]
fn jobs_change_places_before_they_run_and_on_their_way_back() {
    let steered = Steered::start(&["--engines", "1"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    guest.map(3, 0x1000, FREE_FRAME);
    let mut client = steered.client();
    let place = GuestAddress(FREE_FRAME * PAGE_BYTES);
    let offer = |guest: &mut Guest, word: u64| {
        let fill = fill(word, 3, 0x1000, 8, word);
        guest.offer(Queue::Submit, fill.as_bytes(), job_room())
    };
    // Both are in the ring when the device is kicked. {dev-submit-order}
    for (rule_text, last) in [("swap@submit.taken", 1), ("delay=0s@submit.taken", 2)] {
        let set = client.ask(rule(rule_text));
        let (first, second) = (offer(&mut guest, 1), offer(&mut guest, 2));
        guest.kick(Queue::Submit);
        let mut heads = [0; 2].map(|_| guest.returned(Queue::Submit).0);
        heads.sort_unstable();
        assert_eq!(heads, [first, second]);
        let word: u64 = guest.memory.read_obj(place).unwrap();
        assert_eq!(word, last, "{rule_text}");
        client.ask(json!({ "command": "clear-rule", "rule": set["rule"] }));
    }
    // Both have ended when they are returned.
    client.ask(rule("swap@submit.answered"));
    client.ask(json!({ "command": "hold", "point": "submit.published", "limit": "60s" }));
    let busy = offer(&mut guest, 3);
    guest.kick(Queue::Submit);
    client.ask(wait_held("submit.published"));
    let (first, second) = (offer(&mut guest, 4), offer(&mut guest, 5));
    guest.kick(Queue::Submit);
    while guest.statistics().jobs_ended.get() < 7 {
        std::thread::yield_now();
    }
    client.ask(json!({ "command": "release" }));
    let heads = [0; 3].map(|_| guest.returned(Queue::Submit).0);
    assert_eq!(heads, [busy, second, first]);
    let word: u64 = guest.memory.read_obj(place).unwrap();
    assert_eq!(word, 5, "the later one ran later");
}

// {dev-order-faults}
#[test]
fn faults_change_places_before_they_are_told() {
    let steered = Steered::start(&["--engines", "1"]);
    let mut guest = Guest::connect(&steered.daemon, true);
    guest.init();
    guest.create_space(3);
    let jobs_of_faults = |guest: &mut Guest, text: Option<&str>| {
        for job in 1..=3 {
            guest.submit_fill(job, 3, 0x1000 * job, 8);
            while guest.statistics().parked_jobs.get() < job {
                std::thread::yield_now();
            }
        }
        // All faults wait by now.
        text.map(|text| steered.ask(rule(text)));
        guest.offer_fault_buffer(4096);
        let faults = guest.faults();
        for fault in &faults {
            guest.answer(fault, Action::Terminate, Reason::Unmapped.raw());
            let reply = guest.job_reply();
            assert_eq!(reply.status.get(), Status::Fault.raw());
            assert_eq!(reply.address, fault.address);
        }
        let jobs = faults.iter().map(|fault| fault.job.get());
        jobs.collect::<Vec<_>>()
    };
    assert_eq!(jobs_of_faults(&mut guest, None), [1, 2, 3]);
    let swap = "swap@fault.raised,count=1";
    assert_eq!(jobs_of_faults(&mut guest, Some(swap)), [2, 1, 3]);
}

#[test]
fn a_late_thread_uses_no_memory_that_the_guest_has_no_more() {
    const PLACE: u64 = 1 << 32;
    let clear = DmaItem {
        kind: U32::new(Kind::Clear.raw()),
        pages: U32::new(1),
        source: U64::ZERO,
        destination: U64::new(1),
    };
    let copy = request(Request::Copy, 0, 1, clear.as_bytes());
    let statistics = request(Request::Statistics, 0, 0, &[]);
    let job = fill(1, 3, 0x1000, 8, 0x77);
    for (point, queue, request) in [
        ("control.seen", Queue::Control, &*statistics),
        ("control.executed", Queue::Control, &statistics),
        ("control.published", Queue::Control, &statistics),
        ("dma.taken", Queue::Dma, &copy),
        ("dma.item", Queue::Dma, &copy),
        ("dma.answered", Queue::Dma, &copy),
        ("submit.taken", Queue::Submit, job.as_bytes()),
        ("submit.ended", Queue::Submit, job.as_bytes()),
        ("fault.raised", Queue::Fault, &[]),
        ("fault.reported", Queue::Fault, &[]),
        (
            "engine.step",
            Queue::Submit,
            fill(1, 3, 0x1000, 64 * PAGE_BYTES, 0x77).as_bytes(),
        ),
    ] {
        let steered = Steered::start(&[]);
        let mut guest = Guest::prepare(&steered.daemon, true);
        let more = more_memory(c"for-a-while", 1 << 20);
        guest.list_memory(&[listed(&more)]);
        guest.start_rings();
        guest.init();
        guest.create_space(3);
        for page in 0..64 {
            guest.map(3, 0x1000 + page * PAGE_BYTES, PLACE / PAGE_BYTES + 1 + page);
        }
        let mut client = steered.client();
        client.ask(json!({ "command": "hold", "point": point, "limit": "600s" }));
        if queue == Queue::Fault {
            guest.submit_fill(2, 3, 0x9000_0000, 8);
        }
        let head = guest.offer_reply_at(queue, request, PLACE);
        guest.kick(queue);
        client.ask(wait_held(point));
        let other = more_memory(c"in-its-place", 1 << 20);
        guest.list_memory(&[listed(&other)]);
        let contents = |memory: &GuestMemoryMmap| {
            let mut bytes = vec![0; 1 << 20];
            memory.read_slice(&mut bytes, GuestAddress(PLACE)).unwrap();
            bytes
        };
        let before = contents(&more);
        // The thread may still be returning, but it no longer uses the memory.
        let begun = Instant::now();
        while mapped(&steered.daemon, "for-a-while").0 {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "{point}: it is used"
            );
        }
        client.ask(json!({ "command": "release" }));
        assert_eq!(guest.returned(queue).0, head, "{point}");
        assert!(contents(&more) == before, "{point}: it was written");
        // Rules are kept as before.
        client.ask(json!({ "command": "hold", "point": point, "limit": "600s" }));
        guest.offer_reply_at(queue, request, PLACE);
        if queue == Queue::Fault {
            guest.submit_fill(3, 3, 0x9000_0000, 8);
        }
        guest.kick(queue);
        client.ask(wait_held(point));
    }
}
