//! What cores ask of the main thread, which owns the state file: to keep what hosts save.
//!
//! A core never waits for the state file: its request goes over a channel, its task sleeps, and the
//! answer comes over the mesh.

use std::{
    cell::RefCell,
    sync::{Arc, mpsc::Sender},
};

use corebay_core::{sync::Oneshot, units::CoreId};
use corebay_target::{environment::NotKept, feature::FeatureChange, subsystem::Subsystem};
use slab::Slab;

use super::{control::ControlRequest, environment::Medium};

/// What the main thread waits for.
pub enum Event {
    /// The process got a signal.
    Signal(i32),
    /// A host saves a feature.
    Save(SaveRequest),
    /// A client of the control socket asks for something.
    Control(ControlRequest),
}

/// A host saves a feature.
pub struct SaveRequest {
    /// The subsystem of the host's controller.
    pub subsystem: Arc<Subsystem<Medium>>,
    /// What it saves.
    pub change: FeatureChange,
    /// The core that waits for the answer, by [`Keeper::answer`].
    pub core: CoreId,
    /// Names the request within its core.
    pub key: usize,
}

type Outcome = Result<(), NotKept>;

/// One core's way to the main thread.
pub struct Keeper {
    core: CoreId,
    events: Sender<Event>,
    waiting: RefCell<Slab<Oneshot<Outcome>>>,
}

impl Keeper {
    /// The way of `core` to whoever receives `events`.
    pub fn new(core: CoreId, events: Sender<Event>) -> Self {
        Self {
            core,
            events,
            waiting: RefCell::default(),
        }
    }

    /// Asks for a feature to be saved, and waits for the answer.
    pub async fn save(&self, subsystem: &Arc<Subsystem<Medium>>, change: FeatureChange) -> Outcome {
        let answer = Oneshot::default();
        let key = self.waiting.borrow_mut().insert(answer.clone());
        let request = SaveRequest {
            subsystem: subsystem.clone(),
            change,
            core: self.core,
            key,
        };
        if self.events.send(Event::Save(request)).is_err() {
            // The main thread is gone: the process ends.
            self.waiting.borrow_mut().remove(key);
            return Err(NotKept);
        }
        answer.receive().await
    }

    /// The main thread answers a request.
    pub fn answer(&self, key: usize, outcome: Outcome) {
        if let Some(waiting) = self.waiting.borrow_mut().try_remove(key) {
            waiting.send(outcome);
        }
    }
}
