//! An appliance's machine: its media, its memory, and the lives that its target has on it.
//!
//! Invariant: at most one process at a time has a medium open. The kernel unlocks a killed process's
//! files only once it has carried out what was submitted, and until then the next one cannot start.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use corebay_core::{reactor::Reactor, rng::Rng, units::Time};
use corebay_target::memory::Memory;

use crate::{
    medium::{MediumFaults, SimMedium},
    net::Hub,
    node::{Node, Surroundings, memory},
    plan::NodePlan,
    trace::{Trace, event},
};

/// How long a drain of the target may take before it is ended anyhow.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// The longest pauses before a target that ended is started again, in microseconds: a supervisor may
/// wait, or start it at once.
const OFF_MICROS_MAX: [u64; 3] = [100, 5_000, 100_000];

/// The target's life.
enum Life {
    Running(Node),
    Draining(Node, Time),
    /// Off, until then.
    Off(Time),
}

/// See the module.
pub struct Machine {
    /// Where its target listens.
    pub address: SocketAddr,
    /// Its namespaces' media, from NSID 1.
    pub media: Vec<SimMedium>,
    /// Power cuts.
    pub cuts: u64,
    index: usize,
    plan: NodePlan,
    memories: Vec<Memory>,
    life: Life,
    rng: Rng,
    hub: Hub,
    trace: Trace,
}

impl Machine {
    /// The machine of appliance `index`, which is off.
    #[must_use]
    pub fn new(
        (index, address): (usize, SocketAddr),
        plan: &NodePlan,
        faults: MediumFaults,
        mut rng: Rng,
        (hub, trace): (&Hub, &Trace),
    ) -> Self {
        let media: Vec<_> = plan
            .media
            .iter()
            .map(|options| SimMedium::new(*options, rng.next_u64()))
            .collect();
        assert!(!faults.are_silent(), "a bare disk cannot find them");
        for medium in &media {
            medium.set_faults(faults);
        }
        let target = plan.target;
        Self {
            address,
            media,
            cuts: 0,
            index,
            plan: plan.clone(),
            memories: (0..target.cores)
                .map(|_| memory(target.memory_bytes))
                .collect(),
            life: Life::Off(Time(0)),
            rng,
            hub: hub.clone(),
            trace: trace.clone(),
        }
    }

    /// Its address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The target, while there is one.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        match &self.life {
            Life::Running(node) | Life::Draining(node, _) => Some(node),
            Life::Off(_) => None,
        }
    }

    /// The target, unless it drains.
    #[must_use]
    pub fn running(&self) -> Option<&Node> {
        match &self.life {
            Life::Running(node) => Some(node),
            _ => None,
        }
    }

    /// The cores that turn.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.node().map_or(0, |node| node.cores.len())
    }

    /// A core's reactor.
    #[must_use]
    pub fn reactor(&self, core: usize) -> Option<&Reactor> {
        Some(&self.node()?.cores.get(core)?.reactor)
    }

    /// Lets its disks do what is due.
    pub fn advance(&self, now: Time) {
        for medium in &self.media {
            medium.advance(now);
        }
        if let Some(node) = self.node() {
            for queue in node.queues().borrow().iter() {
                queue.advance(now);
            }
        }
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_event(&self) -> Time {
        let mut next = match &self.life {
            Life::Off(until) | Life::Draining(_, until) => *until,
            Life::Running(_) => Time::FAR,
        };
        if let Some(node) = self.node() {
            let queues = node.queues().borrow();
            let due = queues.iter().filter_map(|queue| queue.next_event()).min();
            next = next.min(due.unwrap_or(Time::FAR));
        }
        next
    }

    /// What happens to the target by the passing of time.
    ///
    /// # Errors
    /// Says what is wrong with that.
    pub fn live_on(&mut self, now: Time) -> Result<(), String> {
        match &self.life {
            Life::Off(until) if now >= *until => self.start(now),
            Life::Draining(node, until) if node.connections() == 0 || now >= *until => {
                self.note("has drained and ends");
                self.kill_process(now)
            }
            _ => Ok(()),
        }
    }

    /// Starts the target, once its files are free.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(&mut self, now: Time) -> Result<(), String> {
        if let Some(until) = self.media.iter().filter_map(SimMedium::locked_until).max() {
            self.note("cannot start yet: its disks are locked");
            self.life = Life::Off(until.max(now));
            return Ok(());
        }
        for medium in &self.media {
            medium.set_gone(false);
        }
        self.hub.restore_power(self.ip());
        let around = Surroundings {
            node: self.index,
            plan: &self.plan,
            hub: &self.hub,
            media: &self.media,
            memories: &self.memories,
            trace: &self.trace,
            address: self.address,
        };
        let node = Node::start(&around, now).map_err(|error| error.to_string())?;
        self.life = Life::Running(node);
        self.note("starts");
        Ok(())
    }

    /// The target's process is killed; it starts again in a while.
    ///
    /// # Errors
    /// Says what its end leaves behind.
    pub fn kill(&mut self, now: Time) -> Result<(), String> {
        self.note("is killed");
        self.kill_process(now)
    }

    fn kill_process(&mut self, now: Time) -> Result<(), String> {
        self.hub.end_process(self.ip());
        match self.end(now) {
            Some(node) => node.kill(),
            None => Ok(()),
        }
    }

    /// The machine loses its power, and has it again in a while.
    ///
    /// # Errors
    /// Says what the end of the target leaves behind.
    pub fn cut_power(&mut self, now: Time) -> Result<(), String> {
        self.note("loses its power");
        self.cuts += 1;
        self.hub.cut_power(self.ip());
        let ended = match self.end(now) {
            Some(node) => node.cut_power(),
            None => Ok(()),
        };
        for medium in &self.media {
            medium.cut_power();
        }
        ended
    }

    fn end(&mut self, now: Time) -> Option<Node> {
        let most = OFF_MICROS_MAX[self.rng.below(OFF_MICROS_MAX.len() as u64) as usize];
        let off = Duration::from_micros(self.rng.below(most));
        match std::mem::replace(&mut self.life, Life::Off(now.plus(off))) {
            Life::Running(node) | Life::Draining(node, _) => Some(node),
            Life::Off(_) => None,
        }
    }

    /// Lets the target end in order.
    pub fn drain(&mut self, now: Time) {
        match std::mem::replace(&mut self.life, Life::Off(Time::FAR)) {
            Life::Running(node) => {
                node.drain();
                self.life = Life::Draining(node, now.plus(DRAIN_MAX));
            }
            other => self.life = other,
        }
    }

    /// Detaches a namespace, or attaches the first one that is detached.
    pub fn reload(&mut self) {
        if self.running().is_none_or(Node::is_reloading) {
            return;
        }
        if !self.attach_next() {
            let nsid = 1 + self.rng.below(self.media.len() as u64) as u32;
            self.note(&format!("detaches namespace {nsid}"));
            if let Some(node) = self.running() {
                node.detach(nsid);
            }
        }
    }

    /// Attaches the first namespace that is detached; false where none is.
    pub fn attach_next(&self) -> bool {
        let Some(node) = self.running().filter(|node| !node.is_reloading()) else {
            return false;
        };
        let mut all = self.media.iter().zip(1u32..);
        match all.find(|(_, nsid)| !node.is_attached(*nsid)) {
            Some((medium, nsid)) => {
                self.note(&format!("attaches namespace {nsid}"));
                node.attach(nsid, medium);
                true
            }
            None => false,
        }
    }

    /// True where the target runs with all namespaces attached.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let attached = |node: &Node| (1u32..).take(self.media.len()).all(|n| node.is_attached(n));
        let running = self.running();
        running.is_some_and(|node| !node.is_reloading() && attached(node))
    }

    /// One of its media.
    pub fn any_medium(&mut self) -> SimMedium {
        self.media[self.rng.below(self.media.len() as u64) as usize].clone()
    }

    /// Its disks have space.
    pub fn heal(&self) {
        for medium in &self.media {
            medium.set_full(false);
        }
    }

    /// No more faults: what is broken for good is replaced.
    ///
    /// # Errors
    /// Says what the end of a target without its disk leaves behind.
    pub fn calm_down(&mut self, now: Time) -> Result<(), String> {
        for medium in &self.media {
            medium.set_faults(MediumFaults::default());
        }
        if self.media.iter().any(SimMedium::is_gone) {
            return self.kill(now);
        }
        Ok(())
    }

    fn note(&self, what: &str) {
        let words = [event::FAULT, what.len() as u64, self.index as u64];
        let index = self.index;
        self.trace
            .note(words, || format!("appliance {index} {what}"));
    }
}
