//! What cores ask of the main thread, which owns the state file: to keep what hosts save.
//!
//! A core never waits for the state file: its request goes over a channel, its task sleeps, and the
//! answer comes over the mesh.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, mpsc::Sender},
};

use corebay_core::{sync::Oneshot, units::CoreId};
use corebay_nvme::{pcie::Drive, vfio::VfioRegisters};
use corebay_target::{environment::NotKept, feature::FeatureChange, subsystem::Subsystem};
use slab::Slab;

use super::{control::ControlRequest, drives::Returned, environment::Medium, run::Main};

/// What the main thread waits for.
pub enum Event {
    /// The process got a signal.
    Signal(i32),
    /// A core asks for something to be kept, or for what is kept.
    Save(SaveRequest),
    /// A client of the control socket asks for something.
    Control(ControlRequest),
    /// Namespaces of a drive were attached, detached or resized.
    DriveChanged,
    /// A drive was lost.
    DriveLost(Arc<Drive<VfioRegisters>>),
    /// A drive that was lost is there again.
    DriveReturned(Box<Returned>),
    /// Something that a core has begun goes on.
    Then(Then),
}

/// What is done by the main thread.
pub type Then = Box<dyn FnOnce(&mut Main) + Send>;

/// What a core asks for.
pub enum Keep {
    /// A host saves a feature of its controller's subsystem.
    Feature(Arc<Subsystem<Medium>>, FeatureChange),
    /// A new subsystem gets what is kept of it.
    Restore(Arc<Subsystem<Medium>>),
    /// The pools that were added while the process ran, by what they lie on.
    Pools(BTreeMap<String, String>),
}

/// A core asks for something.
pub struct SaveRequest {
    /// What.
    pub what: Keep,
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
        self.ask(Keep::Feature(subsystem.clone(), change)).await
    }

    /// Gives a new subsystem what is kept of it.
    pub async fn restore(&self, subsystem: &Arc<Subsystem<Medium>>) {
        // It fails only where the process ends.
        let _ = self.ask(Keep::Restore(subsystem.clone())).await;
    }

    /// Notes the pools that were added while the process ran.
    pub async fn keep_pools(&self, pools: BTreeMap<String, String>) -> Outcome {
        self.ask(Keep::Pools(pools)).await
    }

    async fn ask(&self, what: Keep) -> Outcome {
        let answer = Oneshot::default();
        let key = self.waiting.borrow_mut().insert(answer.clone());
        let request = SaveRequest {
            what,
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

    /// The main thread does this when it comes to it. Where it has ended, nothing does.
    pub fn then(&self, action: impl FnOnce(&mut Main) + Send + 'static) {
        let _ = self.events.send(Event::Then(Box::new(action)));
    }

    /// The main thread answers a request.
    pub fn answer(&self, key: usize, outcome: Outcome) {
        if let Some(waiting) = self.waiting.borrow_mut().try_remove(key) {
            waiting.send(outcome);
        }
    }
}
