//! A thread that does work for which other threads must not wait.
//!
//! The thread starts with the first call. One run covers all calls made before it.

use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

/// The thread's handle, and the client that it works for.
pub(super) struct Courier<T> {
    client: Weak<T>,
    errand: fn(&T),
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    called: bool,
    closed: bool,
}

impl<T: Send + Sync + 'static> Courier<T> {
    /// A courier that has not been called.
    pub(super) fn new(client: Weak<T>, errand: fn(&T)) -> Arc<Self> {
        Arc::new(Self {
            client,
            errand,
            state: Mutex::default(),
            called: Condvar::new(),
        })
    }

    /// Requests a run. Returns false if there is none, because no thread can be started or because
    /// the device ends.
    pub(super) fn call(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        if !state.started {
            let this = Arc::clone(self);
            let thread = std::thread::Builder::new().name("courier".into());
            if let Err(error) = thread.spawn(move || this.run()) {
                drop(state);
                log::error!("cannot start a thread that is late instead of others: {error}");
                return false;
            }
            state.started = true;
        }
        state.called = true;
        self.called.notify_one();
        true
    }

    /// Ends the thread after its current run.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.called.notify_one();
    }

    fn run(&self) {
        loop {
            let mut state = self.state.lock();
            while !state.called && !state.closed {
                self.called.wait(&mut state);
            }
            if state.closed {
                return;
            }
            state.called = false;
            drop(state);
            let Some(client) = self.client.upgrade() else {
                return;
            };
            (self.errand)(&client);
        }
    }
}
