//! The trace of a run: a hash over everything that happened, and lines for people where asked for.
//!
//! Invariant: whatever two runs could differ in is noted here, so equal hashes mean equal runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use corebay_core::units::Time;

/// A run's trace; clones name the same one.
#[derive(Clone)]
pub struct Trace {
    state: Arc<Mutex<State>>,
}

struct State {
    now: Time,
    hash: u64,
    events: u64,
    /// Those that were more than a turn.
    effects: u64,
    print: bool,
}

impl Trace {
    /// An empty trace; with `print` each line goes to standard output.
    #[must_use]
    pub fn new(print: bool) -> Self {
        let state = State {
            now: Time(0),
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            effects: 0,
            print,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What follows happens at `now`.
    pub fn set_now(&self, now: Time) {
        self.state().now = now;
    }

    /// The time that was last set.
    #[must_use]
    pub fn now(&self) -> Time {
        self.state().now
    }

    /// Notes an event that is too small for a line.
    pub fn mark(&self, words: [u64; 3]) {
        self.state().mark(words);
    }

    /// Notes an event, with a line that says what it was.
    pub fn note(&self, words: [u64; 3], line: impl FnOnce() -> String) {
        let mut state = self.state();
        state.mark(words);
        if state.print {
            let micros = state.now.0 / 1000;
            println!("{:>10}.{:03} ms  {}", micros / 1000, micros % 1000, line());
        }
    }

    /// The hash over all that was noted.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.state().hash
    }

    /// How many events were noted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.state().events
    }

    /// How many of them were more than a turn of a core.
    #[must_use]
    pub fn effects(&self) -> u64 {
        self.state().effects
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn mark(&mut self, words: [u64; 3]) {
        self.events += 1;
        self.effects += u64::from(words[0] != event::TURN);
        for word in [self.now.0, words[0], words[1], words[2]] {
            self.hash = mix(self.hash ^ word);
        }
    }
}

/// Takes a lock. Everything here runs on one thread; after a panic nobody looks at what is left.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number that depends on every bit of `x` (the finalizer of SplitMix64).
#[must_use]
pub fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What kind of event a trace's word says.
pub mod event {
    /// A core made a turn with something to do.
    pub const TURN: u64 = 1;
    /// Bytes arrived.
    pub const ARRIVAL: u64 = 2;
    /// The network did something to a connection.
    pub const NETWORK: u64 = 3;
    /// A device operation had its effect.
    pub const DEVICE: u64 = 4;
    /// A command began.
    pub const COMMAND: u64 = 5;
    /// A command ended.
    pub const COMPLETION: u64 = 6;
    /// The world did something to a machine.
    pub const FAULT: u64 = 7;
    /// A host asked its controller something.
    pub const ADMIN: u64 = 8;
    /// A block was read.
    pub const VALUE: u64 = 9;
}
