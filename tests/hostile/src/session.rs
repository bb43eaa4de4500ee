//! A conversation with the device; every answer is checked against the model.
//!
//! It sends requests of any quality in chains that keep the rules, answers faults, and makes sure
//! that every job ends. It knows the right answers; the caller decides which requests are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use virtio_hmm_spec::wire::command::{MapEntry, ReplyHeader, Request, Status};
use virtio_hmm_spec::wire::fault::{FaultHeader, FaultRecord, Reason, MIN_BUFFER};
use virtio_hmm_spec::wire::job::{JobReply, JobRequest};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::Queue;
use zerocopy::FromBytes;

use crate::device::{Device, Part, Ticket, ANSWER_DEADLINE};
use crate::machine::Machine;
use crate::model::{Expected, Model};
use crate::request::{self, Reply};

/// The most room that is ever offered for a reply: a little more than the largest query needs.
const MOST_ROOM: usize = 64 << 10;

/// Fault buffers that are offered at a time.
const BUFFERS: usize = 4;

/// Records that a fault buffer has room for.
const RECORDS: usize = 5;

/// How faults are handled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Faults {
    /// The job is told that there is no page.
    Terminate(Reason),
    /// The job is told to try again, and nothing is mapped.
    Retry,
    /// They are not handled.
    Ignore,
}

/// A job that was submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    ticket: Ticket,
    name: u64,
    accepted: bool,
    refused: Option<Status>,
    /// How many spaces had ended when it was submitted.
    generation: u64,
}

/// Counts of events.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Tally {
    /// Answers by queue and status.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Chains that came back without an answer, as required.
    pub(crate) unanswered: u64,
    /// Faults that were reported.
    pub(crate) faults: u64,
    /// Times that the device was reset.
    pub(crate) resets: u64,
}

/// The device and the state of the conversation.
#[derive(Debug)]
pub(crate) struct Session {
    /// The device.
    pub(crate) device: Device,
    /// Counts for the report.
    pub(crate) tally: Tally,
    model: Model,
    running: BTreeSet<u64>,
    buffers: Vec<Ticket>,
    faults: BTreeSet<u64>,
    next_job: u64,
    /// How often spaces have ended.
    generation: u64,
}

impl Session {
    /// Takes the device and initialises it.
    ///
    /// # Errors
    ///
    /// When there is none or it does not answer.
    pub(crate) fn open() -> Result<Self> {
        let device = Device::open()?;
        let model = Model::new(device.config, Machine::read()?);
        let mut session = Self {
            device,
            tally: Tally::default(),
            model,
            running: BTreeSet::new(),
            buffers: Vec::new(),
            faults: BTreeSet::new(),
            // These names are so high that no attack cancels them by chance before they are used.
            next_job: 1 << 32,
            generation: 0,
        };
        session.initialise()?;
        Ok(session)
    }

    /// Resets the device and begins anew.
    ///
    /// # Errors
    ///
    /// When the device has written where it may not, or does not start again.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.device.restart()?;
        self.tally.resets += 1;
        self.forget();
        self.initialise()
    }

    /// Forgets all that the device must forget in a reset.
    pub(crate) fn forget(&mut self) {
        self.model = Model::new(self.device.config, self.model.machine().clone());
        self.running.clear();
        self.buffers.clear();
        self.faults.clear();
    }

    fn initialise(&mut self) -> Result<()> {
        self.control(&request::init())?;
        for _ in 0..BUFFERS {
            self.offer_fault_buffer()?;
        }
        Ok(())
    }

    /// The model's state, for attacks that bypass the session.
    pub(crate) fn model(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Sends a control request and checks its answer.
    ///
    /// # Errors
    ///
    /// When the answer is missing or is not the one that the specification names.
    pub(crate) fn control(&mut self, request: &[u8]) -> Result<Reply> {
        let room = request::reply_room(request).min(MOST_ROOM);
        self.control_into(request, room)
    }

    /// As [`Self::control`] with this much room for the answer.
    ///
    /// # Errors
    ///
    /// When the answer is missing or is not the one that the specification names.
    pub(crate) fn control_into(&mut self, request: &[u8], room: usize) -> Result<Reply> {
        let expected = self.model.control(request, room);
        let answer = self.exchange(Queue::Control, request, room)?;
        let reply = Reply::parse(&answer)?;
        self.count(Queue::Control, reply.status);
        check(&expected, &reply).with_context(|| describe(request))?;
        if reply.status == Status::Ok {
            self.model.done(request);
            ensure!(
                reply.result_bytes() + size_of::<ReplyHeader>() == request::reply_room(request),
                "{} bytes of results; {}",
                reply.result_bytes(),
                describe(request)
            );
            match request_operation(request) {
                Some(Request::Init) => {
                    self.generation += 1;
                    self.running.clear();
                    self.faults.clear();
                }
                Some(Request::SpaceDestroy) => self.generation += 1,
                Some(Request::Fetch) => {
                    statuses(&reply, &self.model.fetched(request))
                        .with_context(|| describe(request))?;
                }
                _ => {}
            }
        }
        Ok(reply)
    }

    /// Sends a control request whose answer is not known: it must only be a valid one.
    ///
    /// # Errors
    ///
    /// When the answer is missing or not valid.
    pub(crate) fn anything(&mut self, request: &[u8]) -> Result<()> {
        let room = request::reply_room(request).min(MOST_ROOM);
        let answer = self.exchange(Queue::Control, request, room)?;
        let reply = Reply::parse(&answer)?;
        self.count(Queue::Control, reply.status);
        Ok(())
    }

    /// Sends a control request that must be answered with `Ok`.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub(crate) fn done(&mut self, request: &[u8]) -> Result<Reply> {
        let reply = self.control(request)?;
        ensure!(
            reply.status == Status::Ok,
            "answered with {:?}; {}",
            reply.status,
            describe(request)
        );
        Ok(reply)
    }

    /// Installs mappings. `false` when the device has no memory for their tables and has installed
    /// none.
    ///
    /// # Errors
    ///
    /// When the answer is missing or is another one.
    pub(crate) fn map_while_there_is_memory(
        &mut self,
        space: u32,
        entries: &[MapEntry],
    ) -> Result<bool> {
        let before = self.statistics()?.mapped_pages.get();
        let request = request::list(Request::Map, space, entries);
        let room = request::reply_room(&request);
        let reply = Reply::parse(&self.exchange(Queue::Control, &request, room)?)?;
        self.count(Queue::Control, reply.status);
        match reply.status {
            Status::Ok => Ok(true),
            Status::NoMemory => {
                let after = self.statistics()?.mapped_pages.get();
                ensure!(
                    after == before,
                    "{before} pages were mapped before, now {after}"
                );
                Ok(false)
            }
            other => bail!("answered with {other:?}; {}", describe(&request)),
        }
    }

    /// Reads the counters.
    ///
    /// # Errors
    ///
    /// When the answer is not right.
    pub(crate) fn statistics(&mut self) -> Result<Statistics> {
        let reply = self.done(&request::bare(Request::Statistics, 0))?;
        let [statistics] = reply.results::<Statistics>()?[..] else {
            bail!("there is more than one set of counters");
        };
        ensure!(
            statistics.stale_accesses.get() == 0,
            "the device has used what had been taken back: {statistics:?}"
        );
        Ok(statistics)
    }

    /// Sends a DMA request and checks its answer; returns the items' statuses.
    ///
    /// # Errors
    ///
    /// When the answer is missing or is not the one that the specification names.
    pub(crate) fn dma(&mut self, request: &[u8]) -> Result<Vec<Status>> {
        let room = request::reply_room(request).min(MOST_ROOM);
        let (expected, items) = self.model.dma(request, room);
        let answer = self.exchange(Queue::Dma, request, room)?;
        let reply = Reply::parse(&answer)?;
        self.count(Queue::Dma, reply.status);
        check(&expected, &reply).with_context(|| describe(request))?;
        if reply.status != Status::Ok {
            return Ok(Vec::new());
        }
        statuses(&reply, &items).with_context(|| describe(request))
    }

    /// Submits a job under a name that no other job bears.
    ///
    /// # Errors
    ///
    /// When the queue is full.
    pub(crate) fn submit(
        &mut self,
        space: u32,
        operation: impl Into<virtio_hmm_spec::wire::operation::Operation>,
    ) -> Result<Job> {
        let name = self.next_job;
        self.next_job += 1;
        self.submit_bytes(&request::job(name, space, operation))
    }

    /// Submits bytes that may or may not be a job.
    ///
    /// # Errors
    ///
    /// When the queue is full.
    pub(crate) fn submit_bytes(&mut self, request: &[u8]) -> Result<Job> {
        let expected = self.model.job(request, &self.running);
        let parts = [Part::Read(request), Part::Write(size_of::<JobReply>())];
        let ticket = self.device.send(Queue::Submit, &parts)?;
        let name = JobRequest::ref_from_bytes(request).map_or(0, |request| request.job.get());
        let accepted = expected.contains(&Status::Ok);
        if accepted {
            self.running.insert(name);
        }
        Ok(Job {
            ticket,
            name,
            accepted,
            refused: expected.into_iter().find(|status| *status != Status::Ok),
            generation: self.generation,
        })
    }

    /// A name that no job has had.
    pub(crate) fn fresh_name(&mut self) -> u64 {
        self.next_job += 1;
        self.next_job
    }

    /// Waits for a job and handles faults. Cancels it when it takes longer than `patience`.
    ///
    /// # Errors
    ///
    /// When it does not end even then, or its reply is not right.
    pub(crate) fn finish(
        &mut self,
        job: Job,
        faults: Faults,
        patience: Duration,
    ) -> Result<JobReply> {
        let start = Instant::now();
        let mut cancelled = false;
        loop {
            if let Some(answer) = self
                .device
                .wait_for(job.ticket, Duration::from_micros(200))?
            {
                return self.judge(job, &answer);
            }
            self.serve_faults(faults)?;
            if !cancelled && start.elapsed() > patience {
                self.done(&request::cancel(job.name))?;
                cancelled = true;
            }
            ensure!(
                start.elapsed() < patience + ANSWER_DEADLINE,
                "job {} has not ended, though it was cancelled",
                job.name
            );
        }
    }

    /// Handles the faults that have been reported so far.
    ///
    /// # Errors
    ///
    /// When a report or the answer to an answer is not right.
    pub(crate) fn serve_faults(&mut self, faults: Faults) -> Result<()> {
        for position in (0..self.buffers.len()).rev() {
            let Some(bytes) = self.device.poll(self.buffers[position])? else {
                continue;
            };
            self.buffers.swap_remove(position);
            let records = self.records(&bytes)?;
            let answers: Vec<_> = records
                .iter()
                .filter_map(|record| match faults {
                    Faults::Terminate(why) => Some(request::terminate(record.fault.get(), why)),
                    Faults::Retry => Some(request::retry(record.fault.get())),
                    Faults::Ignore => None,
                })
                .collect();
            if !answers.is_empty() {
                self.done(&request::list(Request::Answer, 0, &answers))?;
            }
            self.offer_fault_buffer()?;
        }
        Ok(())
    }

    /// Offers one more fault buffer.
    ///
    /// # Errors
    ///
    /// When the queue is full.
    pub(crate) fn offer_fault_buffer(&mut self) -> Result<()> {
        let room = MIN_BUFFER + (RECORDS - 1) * size_of::<FaultRecord>();
        let ticket = self.device.send(Queue::Fault, &[Part::Write(room)])?;
        self.buffers.push(ticket);
        Ok(())
    }

    /// Sends bytes in a chain with this much room for an answer and returns the answer.
    ///
    /// # Errors
    ///
    /// When there was no answer, or the device broke a rule of the queues.
    pub(crate) fn exchange(
        &mut self,
        queue: Queue,
        request: &[u8],
        room: usize,
    ) -> Result<Vec<u8>> {
        // An empty part would become a descriptor of length zero.
        let mut parts = Vec::new();
        if !request.is_empty() {
            parts.push(Part::Read(request));
        }
        parts.push(Part::Write(room));
        self.device.exchange(queue, &parts)
    }

    fn judge(&mut self, job: Job, answer: &[u8]) -> Result<JobReply> {
        let reply = request::job_reply(answer)?;
        let status = request::status(reply.status.get())?;
        self.count(Queue::Submit, status);
        if job.accepted {
            self.running.remove(&job.name);
        }
        // The device may have taken the job only after its space had ended.
        let too_late = job.generation != self.generation
            && matches!(status, Status::NoSpace | Status::NotReady);
        let right = job.refused == Some(status) || (job.accepted && (is_end(status) || too_late));
        ensure!(
            right,
            "job {} ended with {status:?} (refusal due: {:?}, may run: {})",
            job.name,
            job.refused,
            job.accepted
        );
        check_job(&reply, status).with_context(|| format!("job {}: {reply:?}", job.name))?;
        Ok(reply)
    }

    fn records(&mut self, bytes: &[u8]) -> Result<Vec<FaultRecord>> {
        let (header, records) = FaultHeader::ref_from_prefix(bytes)
            .map_err(|_| anyhow::anyhow!("a fault buffer of {} bytes", bytes.len()))?;
        let records = <[FaultRecord]>::ref_from_bytes(records)
            .map_err(|_| anyhow::anyhow!("a fault buffer ends within a record"))?;
        ensure!(
            header.reserved.get() == 0
                && !records.is_empty()
                && usize::try_from(header.count.get())? == records.len(),
            "a fault buffer with {} records says {header:?}",
            records.len()
        );
        for record in records {
            self.tally.faults += 1;
            ensure!(
                self.faults.insert(record.fault.get()),
                "fault {} was reported twice",
                record.fault
            );
            ensure!(
                record.pages.get() > 0 && record.reserved.get() == 0,
                "the record is not right: {record:?}"
            );
        }
        Ok(records.to_vec())
    }

    fn count(&mut self, queue: Queue, status: Status) {
        let what = format!("{} {}", queue.name(), status.name());
        *self.tally.answers.entry(what).or_default() += 1;
    }
}

/// Whether an accepted job may end with this status.
fn is_end(status: Status) -> bool {
    matches!(
        status,
        Status::Ok
            | Status::BadAddress
            | Status::BadArgument
            | Status::Fault
            | Status::Cancelled
            | Status::Bound
            | Status::Storm
    )
}

fn check(expected: &Expected, reply: &Reply) -> Result<()> {
    ensure!(
        expected.statuses.contains(&reply.status),
        "answered with {:?} instead of {:?}",
        reply.status,
        expected.statuses
    );
    if let (Some(entry), true) = (expected.entry, reply.status != Status::Ok) {
        ensure!(
            reply.detail == entry,
            "{:?} is said of entry {} instead of {entry}",
            reply.status,
            reply.detail
        );
    }
    ensure!(
        reply.status == Status::Ok || reply.result_bytes() == 0,
        "a refusal has results"
    );
    Ok(())
}

fn check_job(reply: &JobReply, status: Status) -> Result<()> {
    let faulted = matches!(status, Status::Fault | Status::Storm);
    let why = Reason::from_raw(reply.reason.get()).is_some();
    ensure!(
        if status == Status::Fault {
            why
        } else {
            reply.reason.get() == 0
        },
        "the reason is not right"
    );
    ensure!(
        faulted || (reply.address.get() == 0 && reply.access.get() == 0),
        "an address without a fault"
    );
    let results = reply.values.iter().any(|value| value.get() != 0);
    ensure!(
        !results || matches!(status, Status::Ok | Status::BadArgument),
        "results without a result"
    );
    let refused = status != Status::Ok && status.raw() < Status::BadArgument.raw();
    let anything = reply.faults.get() != 0
        || reply.nanoseconds.get() != 0
        || reply.system_bytes.get() != 0
        || reply.device_bytes.get() != 0;
    ensure!(
        !refused || !anything,
        "a job that was refused has done something"
    );
    Ok(())
}

fn request_operation(request: &[u8]) -> Option<Request> {
    let raw = request.first_chunk::<2>()?;
    Request::from_raw(u16::from_le_bytes(*raw))
}

/// A request for a report, with as many bytes as a person can read.
fn describe(request: &[u8]) -> String {
    const SHOWN: usize = 96;
    let bytes: Vec<_> = request
        .iter()
        .take(SHOWN)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        "the request has {} bytes: {}",
        request.len(),
        bytes.join(" ")
    )
}

/// The status of each item or entry, each of which must be right.
fn statuses(reply: &Reply, right: &[Vec<Status>]) -> Result<Vec<Status>> {
    let results = reply.results::<zerocopy::little_endian::U32>()?;
    ensure!(results.len() == right.len(), "a status for every item");
    let each = results.iter().zip(right).enumerate();
    each.map(|(position, (result, right))| {
        let status = request::status(result.get())?;
        ensure!(
            right.contains(&status),
            "item {position} ended with {status:?} instead of {right:?}"
        );
        Ok(status)
    })
    .collect()
}
