//! A virtual machine in which subjects are tried, and the checks of it.
//!
//! One machine serves many trials. After each trial it is checked that nothing of it is left, that
//! devices noticed no mistakes, and that neither the kernel nor a daemon complained. It knows the
//! command lines of the guest's programs.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use hmm_vm::artifacts::Artifacts;
use hmm_vm::control::{self, Control};
use hmm_vm::guest::{Command, Error, Output};
use hmm_vm::kselftest;
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{Vm, GIB, MIB};
use serde::Deserialize;
use virtio_hmm_spec::points;
use virtio_hmm_spec::uapi::late::LatePoint;

use crate::explore::{Outcome, Place, Verdict};
use crate::rule::{Point, Rule, Side};
use crate::schedule::Crowd;

/// The file of the driver's rules.
const RULES: &str = "/sys/kernel/debug/virtio_hmm/late";

/// A rule of the driver that has no effect.
const COUNTS: &str = "delay=1us@lock,count=1\n";

/// Devices with private memory, and devices whose memory CPUs can address: as many as the kernel's
/// own tests use.
const DEVICES: usize = 2;
const COHERENT_DEVICES: usize = 2;

/// How long a subject may take, at the pace of a fast machine, not counting the delays of rules.
/// Most take a second.
const LIMIT: Duration = Duration::from_secs(60);

/// How much longer it may take to report that it took too long.
const GRACE: Duration = Duration::from_secs(20);

/// The thresholds for how many tasks a subject had at work at one time, highest first. There is a
/// worker for each space that faults, and the driver gives a space the lowest free number. So there
/// were this many tasks if something was mapped in the last of this many spaces.
const CROWDS: [u32; 4] = [128, 64, 16, 4];

/// How long the model runs in one trial, in seconds.
const MODEL: &str = "4";

/// The random models, with small and with huge pages: the number of pages, and of processes and
/// users.
const MODELS: [(&str, &str); 2] = [("600", "3"), ("4096", "3")];

/// How many seeds of each model are among the subjects.
const SEEDS: u64 = 4;

/// The steps of the churn workload.
const CHURN: &str = "40";

/// Unbinds each device from the driver and binds it again, and uses it before and after.
const REBIND: &str = "cd /sys/bus/virtio/drivers/virtio_hmm || exit
    for device in virtio*; do
        hmm run list --size 1000 && echo $device > unbind && echo $device > bind || exit
    done
    hmm run list --size 1000";

/// The program of the kernel's own tests.
const KERNEL_TESTS: &str = "hmm-tests";

/// The one of these tests that only measures.
const BENCHMARK: &str = "benchmark_thp_migration";

/// A machine to try things in.
#[derive(Debug)]
pub struct Lab<'a> {
    artifacts: &'a Artifacts,
    kernel: String,
    seed: u64,
    vm: Option<Vm>,
    /// How many of the kernel's complaints have been reported by a trial.
    complaints: usize,
    /// The subjects whose spaces have been counted.
    counted: BTreeSet<String>,
}

/// The report of `hmm-contract` about a row or a program that it watched.
#[derive(Debug, Deserialize)]
struct Said {
    verdict: String,
    #[serde(default)]
    reason: String,
}

impl<'a> Lab<'a> {
    /// Machines with this kernel. The seed is that of the models among the subjects.
    #[must_use]
    pub fn new(artifacts: &'a Artifacts, kernel: &str, seed: u64) -> Self {
        Self {
            artifacts,
            kernel: kernel.to_owned(),
            seed,
            vm: None,
            complaints: 0,
            counted: BTreeSet::new(),
        }
    }

    fn start(&self) -> Result<Vm> {
        let kernel = self.artifacts.kernels.get(&self.kernel);
        let kernel = kernel.with_context(|| format!("there is no {} kernel", self.kernel))?;
        let helpers = &kernel.for_tests().test_helpers;
        let builder = Vm::builder(self.artifacts)
            .name("explorer")
            .kernel(&self.kernel)
            .check()
            .devices(DEVICES)
            .coherent_devices(COHERENT_DEVICES)
            .memory(2 * GIB)
            .device_memory(64 * MIB)
            // Delays on purpose would fill the log.
            .daemon_log("warn")
            .module_parameter("dmirror=1")
            // The kernel's tests allocate one when they start, which fails if memory is fragmented.
            .kernel_argument("hugepages=2")
            .file(self.artifacts.guest_program("hmm-contract"))
            .file(self.artifacts.guest_program("hmm-workloads"))
            .file(&kernel.for_tests().kernel_tests.program);
        let vm = helpers
            .iter()
            .fold(builder, |builder, helper| builder.file(helper))
            .start()?;
        for helper in helpers {
            let name = helper.file_name().context("a file has a name")?;
            let path = format!("/root/{}", name.to_string_lossy());
            vm.guest().load_module(&path, "", DRIVER)?;
        }
        Ok(vm)
    }

    /// Ends the machine without checks: its failure is known.
    fn abandon(&mut self) {
        if let Some(vm) = self.vm.take() {
            vm.abandon();
        }
    }

    /// The machine, started if there is none.
    fn vm(&mut self) -> Result<&Vm> {
        if self.vm.is_none() {
            let vm = self.start()?;
            self.complaints = vm.guest().complaints()?.len();
            self.vm = Some(vm);
        }
        self.vm.as_ref().context("it was just started")
    }

    /// The program of a subject. `late` is the delay that rules may add.
    fn command(&mut self, subject: &str, late: Duration) -> Result<Command> {
        let limit = self.vm()?.pace().scale(LIMIT) + late;
        let seconds = limit.as_secs().to_string();
        let (kind, rest) = subject.split_once(':').context("a subject is KIND:WHAT")?;
        let command = Command::new("hmm-contract");
        let watch = || {
            let watch = Command::new("hmm-contract").argument("watch");
            watch.arguments(["--limit", &seconds, "--"])
        };
        let command = match kind {
            "row" => command
                .arguments(["run", rest, "--json"])
                .arguments(["--limit", &seconds]),
            "model" => {
                let (pages, seed) = rest.split_once(':').context("a model has a seed")?;
                let processes = MODELS.iter().find(|(other, _)| *other == pages);
                let (_, processes) = processes.context("there is no such model")?;
                watch()
                    .arguments(["hmm-contract", "model", "--seconds", MODEL, "--users"])
                    .arguments(["--pages", pages, "--processes", processes, "--seed", seed])
            }
            "workload" if rest == "churn" => {
                watch().arguments(["hmm-workloads", "run", "churn", "--size", CHURN])
            }
            "workload" if rest == "rebind" => watch().arguments(["sh", "-c", REBIND]),
            "kernel" => watch().arguments([KERNEL_TESTS, "-t", rest]),
            other => anyhow::bail!("there is no kind of subject {other}"),
        };
        Ok(command.limit(LIMIT + GRACE + late))
    }

    /// The failure of the machine after a trial, if there is one.
    fn complaint(&mut self) -> Option<String> {
        let vm = self.vm.as_ref()?;
        let said = match vm.guest().complaints() {
            Ok(complaints) => complaints,
            Err(error) => return Some(error.to_string()),
        };
        let new: Vec<_> = said.iter().skip(self.complaints).collect();
        self.complaints = said.len();
        if let Some(complaint) = new.first() {
            return Some(format!("the kernel says: {complaint}"));
        }
        for device in 0..DEVICES + COHERENT_DEVICES {
            let daemon = vm.daemon(device);
            if let Some(status) = daemon.ended() {
                return Some(format!("the daemon of device {device} has ended: {status}"));
            }
            match daemon.complaints() {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => return Some(format!("the daemon of device {device}: {}", lines[0])),
                Err(error) => return Some(format!("{error:#}")),
            }
        }
        None
    }
}

/// Rules in force, until they are dropped.
struct InForce<'v> {
    vm: &'v Vm,
    /// Each rule of the devices, as one rule on every device.
    device: Vec<(usize, Vec<control::Rule<'v>>)>,
    /// The indices of the driver's rules among all rules, in order.
    driver: Vec<usize>,
    /// Whether the driver has any.
    is_written: bool,
}

impl<'v> InForce<'v> {
    /// Sets the rules. With `counts` the driver gets a rule even if none of these is for it,
    /// because it counts passes of points only while it has a rule.
    fn new(vm: &'v Vm, rules: &[Rule], counts: bool) -> Result<Self> {
        let mut force = Self {
            vm,
            device: Vec::new(),
            driver: Vec::new(),
            is_written: false,
        };
        let mut texts = String::new();
        for (place, rule) in rules.iter().enumerate() {
            match rule.point.side {
                Side::Driver => {
                    force.driver.push(place);
                    texts.push_str(&rule.text);
                    texts.push('\n');
                }
                Side::Device => {
                    let set = |device| Control::rule(vm.device(device), &rule.text);
                    let all = (0..DEVICES + COHERENT_DEVICES).map(set);
                    force.device.push((place, all.collect::<Result<_>>()?));
                }
            }
        }
        if counts {
            texts.push_str(COUNTS);
        }
        force.is_written = !texts.is_empty();
        if force.is_written {
            vm.guest().write_file(RULES, texts)?;
        }
        Ok(force)
    }

    /// How often each of `count` rules took effect.
    fn late(&self, count: usize) -> Result<Vec<u64>> {
        let mut late = vec![0; count];
        for (place, rules) in &self.device {
            for rule in rules {
                late[*place] += rule.happened()?;
            }
        }
        if !self.driver.is_empty() {
            let text = self.vm.guest().read_file(RULES)?;
            let text = String::from_utf8_lossy(&text);
            let struck = text.lines().filter_map(|line| {
                let mut words = line.strip_prefix("rule ")?.split(' ');
                words.next()?.parse::<u64>().ok()
            });
            for (place, struck) in self.driver.iter().zip(struck) {
                late[*place] = struck;
            }
        }
        Ok(late)
    }

    /// Ends them.
    fn end(self) -> Result<()> {
        if self.is_written {
            self.vm.guest().write_file(RULES, "\n")?;
        }
        for (_, rules) in self.device {
            for rule in rules {
                rule.clear()?;
            }
        }
        Ok(())
    }
}

/// Observes how many tasks a subject has and what they do.
struct Look<'v> {
    vm: &'v Vm,
    /// For each of [`CROWDS`] a rule on every device, which takes effect if there were that many
    /// tasks.
    rules: Vec<(u32, Vec<control::Rule<'v>>)>,
}

impl<'v> Look<'v> {
    fn new(vm: &'v Vm) -> Result<Self> {
        let rules = CROWDS.iter().map(|tasks| {
            let last = tasks - 1;
            let rule = format!("delay=1us@control.taken,space={last},operation=map,count=1");
            let set = |device| Control::rule(vm.device(device), &rule);
            let all = (0..DEVICES + COHERENT_DEVICES).map(set);
            Ok((*tasks, all.collect::<Result<_>>()?))
        });
        let rules = rules.collect::<Result<_>>()?;
        Ok(Self { vm, rules })
    }

    /// The result, to be read while the driver's rules are still in force: the most spaces on any
    /// device, one if there were few.
    fn end(self) -> Result<Crowd> {
        let mut tasks = 1;
        for (most, rules) in self.rules {
            for rule in rules {
                if tasks < most && rule.happened()? > 0 {
                    tasks = most;
                }
                rule.clear()?;
            }
        }
        let text = self.vm.guest().read_file(RULES)?;
        let text = String::from_utf8_lossy(&text);
        let passed = text.lines().filter_map(|line| {
            let (name, count) = line.strip_prefix("point ")?.split_once(' ')?;
            (count.parse::<u32>().ok()? >= tasks).then(|| name.to_owned())
        });
        Ok(Crowd {
            tasks,
            passed: passed.collect(),
        })
    }
}

/// The longest time that rules can delay a program, if all delays come one after the other, those
/// of the devices on each of them.
fn most(rules: &[Rule]) -> Duration {
    let each = rules.iter().map(|rule| {
        let devices = match rule.point.side {
            Side::Device => DEVICES + COHERENT_DEVICES,
            Side::Driver => 1,
        };
        let one = rule.most().unwrap_or_default();
        (0..devices).map(|_| one).sum::<Duration>()
    });
    each.sum()
}

impl Place for Lab<'_> {
    fn points(&self) -> Vec<Point> {
        let device = points::Point::ALL.iter().map(|point| Point {
            side: Side::Device,
            name: point.name().to_owned(),
            swaps: point.order_is_free(),
        });
        let driver = LatePoint::all().map(|point| Point {
            side: Side::Driver,
            name: point.word().to_owned(),
            swaps: false,
        });
        device.chain(driver).collect()
    }

    fn subjects(&mut self) -> Result<Vec<String>> {
        let seed = self.seed;
        let vm = self.vm()?;
        let rows = vm.run(["hmm-contract", "list"])?.succeeded()?;
        let rows = rows
            .lines()
            .filter_map(|line| Some(line.split_once(": ")?.0));
        let mut subjects: Vec<String> = rows.map(|row| format!("row:{row}")).collect();
        for (pages, _) in MODELS {
            let seeds = (0..SEEDS).map(|more| seed.wrapping_mul(SEEDS).wrapping_add(more));
            subjects.extend(seeds.map(|seed| format!("model:{pages}:{seed}")));
        }
        subjects.extend(["churn", "rebind"].map(|workload| format!("workload:{workload}")));
        let list = vm.run([KERNEL_TESTS, "-l"])?;
        let list = String::from_utf8_lossy(&list.stderr).into_owned();
        let tests = kselftest::listed(&list).context("the kernel's own tests")?;
        let names = tests.iter().filter_map(|test| test.rsplit('.').next());
        let mut names: Vec<_> = names.filter(|name| *name != BENCHMARK).collect();
        names.sort_unstable();
        names.dedup();
        subjects.extend(names.into_iter().map(|name| format!("kernel:{name}")));
        Ok(subjects)
    }

    fn try_out(&mut self, subject: &str, rules: &[Rule]) -> Result<Outcome> {
        let command = self.command(subject, most(rules))?;
        let is_counted = !self.counted.insert(subject.to_owned());
        let vm = self.vm()?;
        let force = InForce::new(vm, rules, !is_counted)?;
        // After the other rules, so that it takes nothing from them.
        let look = (!is_counted).then(|| Look::new(vm)).transpose()?;
        let ran = vm.run(command);
        let crowd = look.and_then(|look| look.end().ok());
        // An error is ignored: the verdict tells of a machine that is gone.
        let late = force.late(rules.len());
        let ended = force.end();
        let verdict = match ran {
            Err(error @ (Error::Gone { .. } | Error::Broken { .. } | Error::TimedOut { .. })) => {
                let what = self.complaint();
                self.abandon();
                let what = what.map(|what| format!("\n{what}")).unwrap_or_default();
                Verdict::Broken(format!("{error}{what}"))
            }
            Err(error) => return Err(error.into()),
            Ok(output) => match (verdict(&output), self.complaint()) {
                (Verdict::Broken(what), None) => Verdict::Broken(what),
                (Verdict::Broken(what), Some(complaint)) => {
                    Verdict::Broken(format!("{what}\n{complaint}"))
                }
                (_, Some(complaint)) => Verdict::Broken(complaint),
                (verdict, None) => verdict,
            },
        };
        let late = if matches!(verdict, Verdict::Broken(_)) {
            late.unwrap_or_default()
        } else {
            ended?;
            late?
        };
        Ok(Outcome {
            verdict,
            late,
            crowd,
        })
    }

    fn renew(&mut self) -> Result<()> {
        self.abandon();
        self.vm().map(|_| ())
    }

    fn finish(&mut self) -> Result<Option<String>> {
        let Some(vm) = self.vm.take() else {
            return Ok(None);
        };
        Ok(vm.finish().err().map(|error| format!("{error:#}")))
    }
}

/// The verdict of a program of ours; of several rows, the worst.
fn verdict(output: &Output) -> Verdict {
    let text = output.text();
    let said: Vec<Said> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |verdict: &str| said.iter().find(|said| said.verdict == verdict);
    if let Some(said) = of("broken") {
        let more = String::from_utf8_lossy(&output.stderr);
        return Verdict::Broken(format!("{} {}", said.reason, more.trim()));
    }
    if !output.success() || said.is_empty() {
        return Verdict::Broken(format!(
            "it ended with {:?} and no verdict: {text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    match of("cannot-run") {
        Some(said) if of("kept").is_none() => Verdict::CannotRun(said.reason.clone()),
        _ => Verdict::Kept,
    }
}
