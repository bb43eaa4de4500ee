//! Two processes with a page each, few frames, and all requests about them.
//!
//! The device handles each queue at any time: the control queue in order, the others in any order,
//! and a fetch of the dma queue in two steps. These must not happen: a job reaches a frame that is
//! not its process's, or one that is being copied; a frame is written or forgotten while another
//! process owns it; the device refuses a request that the driver depends on.

use crate::search::Model;

/// The driver's rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A fetch goes to the dma queue only after each `Map` of its pages has been carried out.
    pub fetch_behind_maps: bool,
    /// A space is destroyed only after each fetch of the dma queue for it has been answered.
    pub destroy_behind_fetches: bool,
    /// Pages are copied only after their `Unmap` has been answered.
    pub copy_behind_unmap: bool,
    /// A page is mapped, and its old frame freed, only after its copy has been answered.
    pub commit_behind_copy: bool,
    /// The id of a space is reused only after all its jobs have been returned.
    pub create_behind_jobs: bool,
    /// Jobs are submitted only after the `SpaceCreate` has been answered.
    pub jobs_behind_create: bool,
    /// A frame is allocated again only after it has been discarded.
    pub alloc_behind_discard: bool,
}

impl Rules {
    /// All rules.
    pub const ALL: Self = Self {
        fetch_behind_maps: true,
        destroy_behind_fetches: true,
        copy_behind_unmap: true,
        commit_behind_copy: true,
        create_behind_jobs: true,
        jobs_behind_create: true,
        alloc_behind_discard: true,
    };
}

const PROCESSES: usize = 2;
/// Frames of device memory.
const FRAMES: usize = 1;
/// Frames of the guest's memory: one for each process, and one to move to.
const SYSTEM_FRAMES: usize = 2;

type Process = usize;
/// A frame: the first ones are device memory.
type Frame = usize;
/// A request, numbered in the order of posting.
type Number = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Control {
    Create(Process),
    Destroy,
    Map(Frame),
    Unmap,
    /// A fetch of a small page on this queue.
    Fetch(Frame, Frame),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Dma {
    Copy(Frame, Frame),
    Discard(Frame),
    /// A fetch of a huge page.
    Fetch(Frame, Frame),
    /// The same after the pages have been unmapped.
    Fetched(Frame, Frame),
}

/// The driver's work on a process's page or space, and what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Task {
    None,
    /// It has isolated the page, which moves from one frame to another, and will unmap it.
    MovesOut(Frame, Frame),
    Unmaps(Number, Frame, Frame),
    Copies(Number, Frame, Frame),
    /// A CPU has faulted on the page, which is large or small.
    Touched(Frame, Frame, bool),
    Fetches(Number, Frame, Frame, bool),
    /// The page is freed, and there will be a new one.
    Zaps(Number, Frame),
    Creates(Number),
}

/// What the driver knows of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Known {
    /// Whether it has a space, or is about to.
    bound: bool,
    /// Its space ends: nothing is mapped any more.
    ended: bool,
    destroys: Option<Number>,
    /// Where its page is, unless it is moving.
    page: Option<Frame>,
    task: Task,
    /// The page may be mapped on the device.
    recorded: bool,
    last_map: Option<Number>,
    /// Jobs that have not been returned.
    jobs: u8,
}

/// The state of the whole model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    known: [Known; PROCESSES],
    /// The owner of each frame.
    owners: [Option<Process>; FRAMES + SYSTEM_FRAMES],
    /// A free frame that is not discarded yet, and the request if it was posted.
    stale: [Option<Option<Number>>; FRAMES],
    control: Vec<(Number, Control)>,
    dma: Vec<(Number, Dma)>,
    /// Jobs in the submit queue: the process of each, and whether its space existed before it.
    submitted: Vec<(Process, bool)>,
    posted: Number,
    /// Answered requests whose answers are still needed.
    answered: Vec<Number>,
    /// All requests of the control queue up to this one have been carried out.
    carried_out: Number,
    /// The device: the process of the space, and the frame that its page is mapped to.
    space: Option<Process>,
    mapped: Option<Frame>,
    /// How many actions may still begin.
    budget: u8,
    wrong: Option<&'static str>,
}

impl State {
    fn post_control(&mut self, request: Control) -> Number {
        self.posted += 1;
        self.control.push((self.posted, request));
        self.posted
    }

    fn post_dma(&mut self, request: Dma) -> Number {
        self.posted += 1;
        self.dma.push((self.posted, request));
        // In any order.
        self.dma
            .sort_by_key(|(number, request)| (*request, *number));
        self.posted
    }

    fn take_answer(&mut self, number: Number) -> bool {
        let found = self
            .answered
            .iter()
            .position(|answered| *answered == number);
        found.map(|index| self.answered.remove(index)).is_some()
    }

    fn answer(&mut self, number: Number) {
        self.answered.push(number);
        self.answered.sort_unstable();
    }

    /// Replaces one use of a frame by another.
    fn copy(&mut self, from: Frame, to: Frame) {
        if self.mapped == Some(from) || self.mapped == Some(to) {
            self.wrong = Some("a job can get at what is being copied");
        }
        if self.owners[from].is_none() || self.owners[from] != self.owners[to] {
            self.wrong = Some("a copy uses frames of another process");
        }
    }

    fn give_back(&mut self, frame: Frame) {
        self.owners[frame] = None;
        if let Some(stale) = self.stale.get_mut(frame) {
            *stale = Some(None);
        }
    }
}

/// Two processes that take turns with one id of a space.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// The driver's rules.
    pub rules: Rules,
    /// How many actions begin.
    pub budget: u8,
}

impl Pages {
    fn alloc(
        &self,
        state: &mut State,
        process: Process,
        frames: std::ops::Range<Frame>,
    ) -> Option<Frame> {
        let may = |frame: &Frame| {
            let stale = state.stale.get(*frame).is_some_and(Option::is_some);
            state.owners[*frame].is_none() && !(stale && self.rules.alloc_behind_discard)
        };
        let frame = frames.into_iter().find(may)?;
        state.owners[frame] = Some(process);
        Some(frame)
    }

    /// The actions that can begin for a process.
    fn begin(&self, state: &State, process: Process) -> Vec<(&'static str, State)> {
        let mut next = Vec::new();
        let known = state.known[process];
        if state.budget == 0 {
            return next;
        }
        let mut begun = state.clone();
        begun.budget -= 1;
        let idle = known.task == Task::None;
        let lives = known.bound && !known.ended;
        let created = !matches!(known.task, Task::Creates(_));
        if let (Some(frame), true, true) = (known.page, idle, lives) {
            let mut state = begun.clone();
            let number = state.post_control(Control::Map(frame));
            let known = &mut state.known[process];
            (known.recorded, known.last_map) = (true, Some(number));
            next.push(("maps its page", state));
        }
        if let (Some(frame), true) = (known.page, idle && lives) {
            let is_device = frame < FRAMES;
            let to = if is_device {
                FRAMES..FRAMES + SYSTEM_FRAMES
            } else {
                0..FRAMES
            };
            for large in [false, true] {
                let mut state = begun.clone();
                if let Some(to) = self.alloc(&mut state, process, to.clone()) {
                    let known = &mut state.known[process];
                    known.page = None;
                    known.task = if is_device {
                        Task::Touched(frame, to, large)
                    } else {
                        Task::MovesOut(frame, to)
                    };
                    next.push((
                        if is_device {
                            "touches its page"
                        } else {
                            "moves its page"
                        },
                        state,
                    ));
                }
            }
        }
        if let (Some(frame), true) = (known.page, idle) {
            let mut state = begun.clone();
            state.known[process].page = None;
            if known.recorded {
                let number = state.post_control(Control::Unmap);
                state.known[process].task = Task::Zaps(number, frame);
            } else {
                state.give_back(frame);
            }
            next.push(("unmaps its page", state));
        }
        if known.page.is_none() && idle {
            let mut state = begun.clone();
            if let Some(frame) = self.alloc(&mut state, process, FRAMES..FRAMES + SYSTEM_FRAMES) {
                state.known[process].page = Some(frame);
                next.push(("gets a page", state));
            }
        }
        if lives && created {
            let mut state = begun.clone();
            state.known[process].ended = true;
            next.push(("ends its space", state));
        }
        let others =
            |known: &Known| known.bound || (self.rules.create_behind_jobs && known.jobs > 0);
        if !known.bound && idle && !state.known.iter().any(others) {
            let mut state = begun.clone();
            let number = state.post_control(Control::Create(process));
            let known = &mut state.known[process];
            (known.bound, known.task) = (true, Task::Creates(number));
            next.push(("binds", state));
        }
        if lives && known.jobs == 0 && (created || !self.rules.jobs_behind_create) {
            let mut state = begun;
            state.known[process].jobs += 1;
            state.submitted.push((process, created));
            state.submitted.sort_unstable();
            next.push(("submits a job", state));
        }
        next
    }

    /// The next steps of a process's action.
    fn go_on(&self, state: &State, process: Process) -> Vec<(&'static str, State)> {
        let mut next = Vec::new();
        let mut after = state.clone();
        let known = state.known[process];
        let carried_out = |number: Number| state.carried_out >= number;
        let task = match known.task {
            Task::None => None,
            Task::MovesOut(from, to) => {
                let task = if known.recorded && self.rules.copy_behind_unmap {
                    Task::Unmaps(after.post_control(Control::Unmap), from, to)
                } else {
                    if known.recorded {
                        after.post_control(Control::Unmap);
                    }
                    Task::Copies(after.post_dma(Dma::Copy(from, to)), from, to)
                };
                Some(("asks for it to be moved", task))
            }
            Task::Unmaps(number, from, to) => after.take_answer(number).then(|| {
                after.known[process].recorded = false;
                let number = after.post_dma(Dma::Copy(from, to));
                ("has it copied", Task::Copies(number, from, to))
            }),
            Task::Copies(number, from, to) => {
                let answered = after.take_answer(number);
                (answered || !self.rules.commit_behind_copy).then(|| {
                    after.known[process].page = Some(to);
                    after.give_back(from);
                    ("has moved its page", Task::None)
                })
            }
            Task::Touched(from, to, _) if known.ended => {
                // The page stays where it is.
                after.owners[to] = None;
                after.known[process].page = Some(from);
                Some(("is ended and leaves its page", Task::None))
            }
            Task::Touched(from, to, true) => {
                let may = !self.rules.fetch_behind_maps || known.last_map.is_none_or(carried_out);
                may.then(|| {
                    after.known[process].recorded = false;
                    let number = after.post_dma(Dma::Fetch(from, to));
                    (
                        "has a huge page fetched",
                        Task::Fetches(number, from, to, true),
                    )
                })
            }
            Task::Touched(from, to, false) => {
                after.known[process].recorded = false;
                let number = after.post_control(Control::Fetch(from, to));
                Some((
                    "has a small page fetched",
                    Task::Fetches(number, from, to, false),
                ))
            }
            Task::Fetches(number, from, to, _) => after.take_answer(number).then(|| {
                after.known[process].page = Some(to);
                after.give_back(from);
                ("has its page", Task::None)
            }),
            Task::Zaps(number, frame) => after.take_answer(number).then(|| {
                after.known[process].recorded = false;
                after.give_back(frame);
                ("has unmapped its page", Task::None)
            }),
            Task::Creates(number) => after
                .take_answer(number)
                .then_some(("is bound", Task::None)),
        };
        if let Some((what, task)) = task {
            after.known[process].task = task;
            next.push((what, after));
        }
        let mut after = state.clone();
        let fetches = matches!(known.task, Task::Fetches(_, _, _, true));
        if known.ended
            && known.destroys.is_none()
            && !(self.rules.destroy_behind_fetches && fetches)
        {
            after.known[process].destroys = Some(after.post_control(Control::Destroy));
            next.push(("destroys its space", after));
        } else if known
            .destroys
            .is_some_and(|number| after.take_answer(number))
        {
            if let Task::Touched(from, to, _) = known.task {
                // The space in which it faulted is gone: the page stays where it is.
                after.owners[to] = None;
                after.known[process].page = Some(from);
                after.known[process].task = Task::None;
            }
            let known = &mut after.known[process];
            (known.bound, known.ended, known.destroys) = (false, false, None);
            (known.recorded, known.last_map) = (false, None);
            next.push(("has no space any more", after));
        }
        next
    }

    fn device(&self, state: &State) -> Vec<(String, State)> {
        let mut next = Vec::new();
        if let Some(&(number, request)) = state.control.first() {
            let mut state = state.clone();
            state.control.remove(0);
            state.carried_out = number;
            match request {
                Control::Create(process) => state.space = Some(process),
                Control::Destroy => (state.space, state.mapped) = (None, None),
                Control::Map(frame) if state.space.is_some() => state.mapped = Some(frame),
                Control::Map(_) => {}
                Control::Unmap => state.mapped = None,
                Control::Fetch(from, to) => {
                    state.mapped = None;
                    state.copy(from, to);
                    if state.space.is_none() {
                        state.wrong = Some("a fetch is refused");
                    }
                }
            }
            if !matches!(request, Control::Map(_)) {
                state.answer(number);
            }
            next.push((format!("the device: {request:?}"), state));
        }
        for (index, &(number, request)) in state.dma.iter().enumerate() {
            let mut state = state.clone();
            state.dma.remove(index);
            match request {
                Dma::Copy(from, to) => state.copy(from, to),
                Dma::Discard(frame) => {
                    if state.owners[frame].is_some() || state.mapped == Some(frame) {
                        state.wrong = Some("a frame is discarded that is in use");
                    }
                }
                Dma::Fetch(from, to) => {
                    if state.space.is_none() {
                        state.wrong = Some("a fetch is refused");
                    }
                    state.mapped = None;
                    state.dma.push((number, Dma::Fetched(from, to)));
                    state
                        .dma
                        .sort_by_key(|(number, request)| (*request, *number));
                }
                Dma::Fetched(from, to) => state.copy(from, to),
            }
            if !matches!(request, Dma::Fetch(..)) {
                state.answer(number);
            }
            next.push((format!("the device: {request:?} of the dma queue"), state));
        }
        for (index, &(process, created)) in state.submitted.iter().enumerate() {
            let mut state = state.clone();
            state.submitted.remove(index);
            state.known[process].jobs -= 1;
            match state.space {
                Some(owner) if owner != process => {
                    state.wrong = Some("a job runs in another space")
                }
                None if !created => state.wrong = Some("a job is refused"),
                _ => {}
            }
            next.push((format!("the device: a job of {process}"), state));
        }
        next
    }
}

impl Model for Pages {
    type State = State;

    fn start(&self) -> State {
        let known = |bound, page| Known {
            bound,
            ended: false,
            destroys: None,
            page,
            task: Task::None,
            recorded: false,
            last_map: None,
            jobs: 0,
        };
        let mut owners = [None; FRAMES + SYSTEM_FRAMES];
        owners[0] = Some(0);
        State {
            // One process has its page on the device; the other one has neither a page nor a space.
            known: [known(true, Some(0)), known(false, None)],
            owners,
            stale: [None; FRAMES],
            control: Vec::new(),
            dma: Vec::new(),
            submitted: Vec::new(),
            posted: 0,
            answered: Vec::new(),
            carried_out: 0,
            space: Some(0),
            mapped: None,
            budget: self.budget,
            wrong: None,
        }
    }

    fn next(&self, state: &State) -> Vec<(String, State)> {
        let mut next = self.device(state);
        for process in 0..PROCESSES {
            let steps = self.begin(state, process);
            for (what, state) in steps.into_iter().chain(self.go_on(state, process)) {
                next.push((format!("process {process} {what}"), state));
            }
        }
        for frame in 0..FRAMES {
            let mut state = state.clone();
            let stale = state.stale[frame];
            match stale {
                Some(None) if state.owners[frame].is_none() => {
                    state.stale[frame] = Some(Some(state.post_dma(Dma::Discard(frame))));
                    next.push((format!("frame {frame} is to be discarded"), state));
                }
                Some(Some(number)) if state.take_answer(number) => {
                    state.stale[frame] = None;
                    next.push((format!("frame {frame} has been discarded"), state));
                }
                _ => {}
            }
        }
        next
    }

    fn wrong(&self, state: &State, is_last: bool) -> Option<String> {
        if let Some(wrong) = state.wrong {
            return Some(wrong.to_owned());
        }
        if let Some(frame) = state.mapped {
            if state.owners[frame].is_none() || state.owners[frame] != state.space {
                return Some(format!(
                    "frame {frame} is mapped, and is another one's or nobody's"
                ));
            }
        }
        let waits = |known: &Known| known.task != Task::None || known.destroys.is_some();
        (is_last && state.known.iter().any(waits)).then(|| format!("nothing goes on: {state:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{search, Found};

    /// How many actions begin: enough for each of the orders below, and for all others.
    const BUDGET: u8 = 7;

    fn assert_found(rules: Rules, what: &str) {
        match search(&Pages {
            rules,
            budget: BUDGET,
        }) {
            Found::Nothing(states) => panic!("nothing in {states} states"),
            Found::Wrong(wrong, steps) => {
                println!("{wrong}\n{}", steps.join("\n"));
                assert!(wrong.contains(what), "{wrong}");
            }
        }
    }

    #[test]
    fn with_all_rules_no_order_does_any_harm() {
        let rules = Rules::ALL;
        match search(&Pages {
            rules,
            budget: BUDGET,
        }) {
            Found::Nothing(states) => println!("{states} states"),
            Found::Wrong(wrong, steps) => panic!("{wrong}\n{}", steps.join("\n")),
        }
    }

    #[test]
    fn a_fetch_that_overtakes_a_map_leaves_its_page_mapped() {
        let rules = Rules {
            fetch_behind_maps: false,
            ..Rules::ALL
        };
        assert_found(rules, "a job can get at");
    }

    #[test]
    fn a_fetch_that_its_space_overtakes_is_refused() {
        let rules = Rules {
            destroy_behind_fetches: false,
            ..Rules::ALL
        };
        assert_found(rules, "a fetch is refused");
    }

    #[test]
    fn a_copy_that_overtakes_an_unmap_misses_what_jobs_write() {
        let rules = Rules {
            copy_behind_unmap: false,
            ..Rules::ALL
        };
        assert_found(rules, "being copied");
    }

    #[test]
    fn a_page_that_is_given_back_before_its_copy_is_overwritten_by_it() {
        let rules = Rules {
            commit_behind_copy: false,
            ..Rules::ALL
        };
        assert_found(rules, "");
    }

    #[test]
    fn a_space_that_overtakes_a_job_of_the_one_before_runs_it() {
        let rules = Rules {
            create_behind_jobs: false,
            ..Rules::ALL
        };
        assert_found(rules, "a job runs in another space");
    }

    #[test]
    fn a_job_that_overtakes_its_space_is_refused() {
        let rules = Rules {
            jobs_behind_create: false,
            ..Rules::ALL
        };
        assert_found(rules, "a job is refused");
    }

    #[test]
    fn a_frame_that_is_allocated_before_it_is_discarded_is_forgotten_in_use() {
        let rules = Rules {
            alloc_behind_discard: false,
            ..Rules::ALL
        };
        assert_found(rules, "discarded");
    }
}
